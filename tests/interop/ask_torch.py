"""Writes LLaMAs of `transformers` as Meta, llama2.c and the book keep them, and lets the library read them.

    ask_torch.py FOLDER PACKAGES

Runs in the peers environment, which has PyTorch and no JAX: PACKAGES, the packages of the environment of the
tests, are searched after its own. FOLDER gets the files; `told.json` says how far the logits are apart, how
many values differ at all, and what bad files are refused with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

#: As many queries as `book` has, so that its heads need not be said.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "attention_bias": False,
}
LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOKENS = torch.tensor([[1, 7, 3, 0, 39, 22, 5], [8, 8, 31, 2, 4, 17, 11]])


def llama(vocabulary: int, tied: bool, seed: int) -> LlamaForCausalLM:
    """A random model with norms that are not one."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=tied, **SIZES)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def in_metas_names(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The state dict as Meta's code would have it: the halves of each head are interleaved."""
    theirs, config = model.state_dict(), model.config
    state = {
        "tok_embeddings.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "output.weight": theirs["lm_head.weight"],
    }
    heads = {"attention.wq": config.num_attention_heads, "attention.wk": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for name, hf in LAYER.items():
            weight = theirs[f"model.layers.{layer}.{hf}.weight"]
            if name in heads:
                low, high = weight.view(heads[name], 2, -1, weight.shape[1]).unbind(1)
                weight = torch.stack([low, high], 2).reshape(weight.shape)
            state[f"layers.{layer}.{name}.weight"] = weight
    return state


def shards(state: dict[str, torch.Tensor], count: int, embedding: int) -> list[dict[str, torch.Tensor]]:
    """As Fairscale's layers keep their parts: ColumnParallel cuts rows of the matrix, RowParallel columns."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, weight in state.items():
        last = name.split(".")[-2]
        for number in range(count):
            if weight.ndim == 1:
                part = weight
            else:
                axis = embedding if last == "tok_embeddings" else 1 if last in ("wo", "w2") else 0
                part = weight.chunk(count, axis)[number]
            parts[number][name] = part.clone()
    for part in parts:
        part["rope.freqs"] = torch.ones(2)
    return parts


class Calls:
    """An object whose pickle wants to call something."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def write(folder: Path) -> dict[str, tuple[Path, LlamaForCausalLM]]:
    """Every layout, with the model that it is of."""
    sizes = {
        "dim": SIZES["hidden_size"],
        "n_layers": SIZES["num_hidden_layers"],
        "n_heads": SIZES["num_attention_heads"],
        "n_kv_heads": SIZES["num_key_value_heads"],
    }
    written: dict[str, tuple[Path, LlamaForCausalLM]] = {}
    for name, embedding in (("llama2", 1), ("llama3", 0)):
        # Half precision, as Meta publishes them; the other model has the same rounded numbers.
        model = llama(40, False, 0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.to(torch.bfloat16))
        state = {name: weight.to(torch.bfloat16) for name, weight in in_metas_names(model).items()}
        path = folder / name
        path.mkdir()
        for number, part in enumerate(shards(state, 2, embedding)):
            torch.save(part, path / f"consolidated.{number:02d}.pth")
        # 2/3 of 4 * 64 is 170; times 0.53 is 90, and the next multiple of 32 is 96.
        params = {**sizes, "multiple_of": 32, "ffn_dim_multiplier": 0.53, "norm_eps": 1e-5, "vocab_size": -1}
        (path / "params.json").write_text(json.dumps(params))
        written[name] = (path, model)

    model, path = llama(40, True, 1), folder / "ckpt.pt"
    args = {**sizes, "vocab_size": 40, "hidden_dim": 96, "multiple_of": 32, "max_seq_len": 64, "dropout": 0.0}
    state = {f"_orig_mod.{name}": weight for name, weight in in_metas_names(model).items()}
    best = torch.tensor(1.5)
    held = {"model": state, "model_args": args, "iter_num": 9, "best_val_loss": best, "config": {"lr": 1e-3}}
    torch.save(held, path)
    written["llama2.c"] = (path, model)
    torch.save(held, folder / "old.pt", _use_new_zipfile_serialization=False)
    written["old"] = (folder / "old.pt", model)

    model, path = llama(6144, True, 2), folder / "pretrain_64_2_6144.pth"
    torch.save({f"_orig_mod.{k}": weight for k, weight in in_metas_names(model).items()}, path)
    written["book"] = (path, model)
    return written


def refusals(folder: Path, whole: Path, load: Callable[[Path], Any]) -> dict[str, str]:
    """What bad files are refused with."""
    torch.save({"tok_embeddings.weight": Calls(open, str(folder / "was-run"), "w")}, folder / "code.pth")
    torch.save({"tok_embeddings.weight": Calls(os.mkdir, str(folder / "was-run"))}, folder / "shell.pth")
    (folder / "cut.pth").write_bytes(whole.read_bytes()[:-5000])
    (folder / "empty.pth").touch()
    (folder / "text.bin").write_text("no checkpoint at all")
    torch.save({"tok_embeddings.weight": torch.zeros(4, 4)}, folder / "few.pth")
    torch.save([1, 2], folder / "list.pth")
    said: dict[str, str] = {}
    for name in ("code.pth", "shell.pth", "cut.pth", "empty.pth", "text.bin", "few.pth", "list.pth"):
        try:
            load(folder / name)
        except ValueError as error:
            said[name] = str(error)
    return said


def main() -> None:
    folder, packages = Path(sys.argv[1]), sys.argv[2:]
    sys.path += packages
    import hllm_jax
    from hllm_jax.interop.meta import open_meta

    told: dict[str, Any] = {"apart": {}, "tied": {}, "heads": {}}
    written = write(folder)
    for name, (path, model) in written.items():
        with torch.no_grad():
            wanted = model(TOKENS).logits.numpy()
        loaded = hllm_jax.load(path, dtype="float32")
        told["apart"][name] = float(abs(loaded.logits(TOKENS.numpy()) - wanted).max())
        told["tied"][name] = loaded.config.tie_embeddings
        told["heads"][name] = [loaded.config.heads, loaded.config.kv_heads, loaded.config.max_length]
    path, model = written["llama2"]
    opened, bits = open_meta(path), in_metas_names(model)
    read = {name: opened.read(name) for name in bits}
    told["bits"] = {
        name: [str(array.dtype), int((array.astype("float32") != bits[name].numpy()).sum())]
        for name, array in read.items()
    }
    told["refused"] = refusals(folder, written["book"][0], hllm_jax.load)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
