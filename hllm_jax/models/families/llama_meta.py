"""LLaMA as Meta, llama2.c and the book keep it: other names, and RoPE's pairs side by side.

This is no page, because such weights come without a config.json: beside them lies a params.json (Meta), or a
dict `model_args` in the same file (llama2.c), or nothing (the book's `pretrain_1024_18_6144.pth`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from hllm_jax.models.families.forms import Matrix, Same
from hllm_jax.models.families.published import Keys
from hllm_jax.models.families.table import Table, Tensors, TensorsError, row
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import RopeScaling

_ATTENTION, _MLP = "layers.{}.attention.", "layers.{}.feed_forward."

META_NAMES = Table(
    rows=(
        row("tok_embeddings.weight", "embed/embedding", Same()),
        row("norm.weight", "final_norm/scale", Same()),
        row("output.weight", "head/kernel", Matrix()),
        row("layers.{}.attention_norm.weight", "layers_{}/attention_norm/scale", Same()),
        row("layers.{}.ffn_norm.weight", "layers_{}/mlp_norm/scale", Same()),
        row(f"{_ATTENTION}wq.weight", "layers_{}/attention/query/kernel", Matrix(paired=True)),
        row(f"{_ATTENTION}wk.weight", "layers_{}/attention/key/kernel", Matrix(paired=True)),
        row(f"{_ATTENTION}wv.weight", "layers_{}/attention/value/kernel", Matrix()),
        row(f"{_ATTENTION}wo.weight", "layers_{}/attention/out/kernel", Matrix(inputs=2)),
        row(f"{_MLP}w1.weight", "layers_{}/mlp/gate/kernel", Matrix()),
        row(f"{_MLP}w3.weight", "layers_{}/mlp/up/kernel", Matrix()),
        row(f"{_MLP}w2.weight", "layers_{}/mlp/down/kernel", Matrix()),
    ),
    # Tables of RoPE and causal masks, which follow from the config.
    ignored=(
        "rope.freqs",
        "freqs_cos",
        "freqs_sin",
        f"{_ATTENTION}inner_attention.rope.freqs",
        f"{_ATTENTION}mask",
    ),
    tied=("output.weight",),
)

#: What PyTorch's wrappers put before every name when a state dict was taken of them.
META_PREFIXES = ("_orig_mod.", "module.")

#: Where Meta's model parallelism cuts a tensor for its shards, by the last part of its name: the axis, or
#: "embedding" where that depends on the model. What is not named here is whole in each shard.
SPLIT: Mapping[str, int | Literal["embedding"]] = {
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0),
    **dict.fromkeys(("wo", "w2"), 1),
    "tok_embeddings": "embedding",
}

#: The vocabulary of the book's models, and their heads and longest row, which no shape says.
_BOOK_VOCABULARY, _BOOK = 6144, {"n_heads": 16, "max_seq_len": 512}

_EMBEDDING, _HEAD = "tok_embeddings.weight", "output.weight"


def from_params(params: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """params.json of Meta (and Mistral), or `model_args` of llama2.c, to our spec.

    Three things no such file says. The longest row is what Meta published for these numbers, unless there is
    a `max_seq_len`. The factor of a scaled RoPE is 8, and 32 in Llama 3.2, which alone is narrower than 4096.
    The head is the embedding where both are the same numbers, or there is only one.

    Args:
        params: keys and values.
        tensors: of the checkpoint, for the head, and the vocabulary where it is said to be -1.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(params, silent=("max_batch_size", "flash", "flash_attn"), where="params.json")
    for key in ("moe_args", "quantization_args", "lora_args"):
        keys.only(key, None)
    dim, heads = keys.take("dim"), keys.take("n_heads")
    vocab_size, table = keys.take("vocab_size", -1), tensors.shapes.get(_EMBEDDING, (0,))
    theta, eps = float(keys.take("rope_theta", 10000.0)), float(keys.take("norm_eps", 1e-5))
    scaled = keys.take("use_scaled_rope", False)
    factor = float(keys.take("rope_scaling_factor", 32.0 if dim < 4096 else 8.0))
    high = float(keys.take("rope_high_freq_factor", 4.0))
    longest = 131072 if scaled else 8192 if theta > 10000.0 else 2048 if eps < 1e-5 else 4096
    spec = DecoderConfig(
        vocab_size=vocab_size if vocab_size > 0 else table[0],
        layers=keys.take("n_layers"),
        embed=dim,
        heads=heads,
        kv_heads=keys.take("n_kv_heads", heads),
        head_dim=keys.take("head_dim", None),
        mlp=_hidden(keys, dim),
        max_length=keys.take("max_seq_len", longest),
        norm_eps=eps,
        rope_theta=theta,
        rope_scaling=RopeScaling(kind="llama3", factor=factor, high=high) if scaled else None,
        dropout=keys.take("dropout", 0.0),
        tie_embeddings=_tied(tensors),
    )
    keys.finish()
    return spec


def params_of(tensors: Tensors, heads: int | None = None) -> dict[str, Any]:
    """The params.json of weights that come alone, such as the book's, for `from_params`.

    Args:
        tensors: of the checkpoint.
        heads: how many, which no shape says; None: the book's 16, where vocabulary and keys are the book's.

    Raises:
        TensorsError: the tensors are not those of a LLaMA with this number of heads, or it is not known.
    """
    shapes = tensors.shapes
    for name in (_EMBEDDING, "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"):
        if len(shapes.get(name, ())) != 2:
            raise TensorsError(
                f"{tensors.where} holds no matrix {name}: these are no weights in LLaMA's first names"
            )
    vocab_size, dim = shapes[_EMBEDDING]
    keys = shapes["layers.0.attention.wk.weight"][0]
    book: dict[str, int] = {}
    if heads is None:
        if vocab_size != _BOOK_VOCABULARY or 2 * keys != dim:
            raise TensorsError(
                f"{tensors.where}: no shape says how many heads share {dim} channels, and these are not the "
                f"book's (vocabulary {_BOOK_VOCABULARY}, half as many keys): put a params.json beside it "
                "with n_heads, and with max_seq_len, norm_eps and rope_theta where they are not LLaMA 2's"
            )
        book, heads = _BOOK, _BOOK["n_heads"]
    if not isinstance(heads, int) or heads < 1 or dim % heads or not dim or keys % (dim // heads):
        raise TensorsError(
            f"{tensors.where}: {heads} heads do not fit a stream of {dim} and keys of {keys}: say how many "
            "there are"
        )
    layers = {found[1] for name in shapes if (found := re.match(r"layers\.(\d+)\.", name))}
    return {
        "dim": dim,
        "n_layers": len(layers),
        "n_heads": heads,
        "n_kv_heads": keys // (dim // heads),
        "vocab_size": vocab_size,
        "hidden_dim": shapes["layers.0.feed_forward.w1.weight"][0],
        **book,
    }


def _hidden(keys: Keys, dim: int) -> int:
    """Width of the feed-forward network: 2/3 · 4 · dim, times a factor, rounded up to a multiple."""
    given, multiple = keys.take("hidden_dim", None), keys.take("multiple_of", 256)
    factor = keys.take("ffn_dim_multiplier", None)
    hidden = int(2 * (4 * dim) / 3)
    hidden = hidden if factor is None else int(factor * hidden)
    return given if given is not None else -(-hidden // multiple) * multiple


def _tied(tensors: Tensors) -> bool:
    """Whether the head repeats the embedding, or there is none."""
    if _HEAD not in tensors.shapes:
        return True
    if tensors.shapes[_HEAD] != tensors.shapes.get(_EMBEDDING):
        return False
    return np.array_equal(tensors.read(_HEAD), tensors.read(_EMBEDDING))
