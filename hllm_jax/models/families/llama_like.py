"""What the descendants of LLaMA share: keys of config.json and GGUF, and names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hllm_jax.models.families.forms import Matrix, Same, Vector
from hllm_jax.models.families.published import ACTIVATIONS, Keys, layer_types, rope_to_hf
from hllm_jax.models.families.table import Arrays, Row, Tensors, row
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import RopeScaling


def sizes_from_hf(keys: Keys) -> dict[str, Any]:
    """The fields of a spec that every descendant's config.json has."""
    heads = keys.take("num_attention_heads")
    return {
        "vocab_size": keys.take("vocab_size"),
        "layers": keys.take("num_hidden_layers"),
        "embed": keys.take("hidden_size"),
        "heads": heads,
        "kv_heads": keys.take("num_key_value_heads", heads),
        "head_dim": keys.take("head_dim", None),
        "mlp": keys.take("intermediate_size"),
        "max_length": keys.take("max_position_embeddings", 2048),
        "norm_eps": keys.take("rms_norm_eps", 1e-6),
        "activation": keys.activation("hidden_act", "silu"),
        "attention_dropout": keys.take("attention_dropout", 0.0),
    }


def sizes_to_hf(spec: DecoderConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """The inverse of `sizes_from_hf`, with RoPE, and the tie of the head."""
    published = {name: hf for hf, name in ACTIVATIONS.items() if hf not in ("swish", "gelu_new")}
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        **({} if spec.head_dim is None else {"head_dim": spec.head_dim}),
        "intermediate_size": spec.mlp_size,
        "max_position_embeddings": spec.max_length,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": published[spec.activation],
        "attention_dropout": spec.attention_dropout,
        "tie_word_embeddings": spec.tie_embeddings,
        "initializer_range": spec.init_std,
        **rope_to_hf(spec),
    }


def upper_windows_from_hf(keys: Keys, layers: int) -> dict[str, Any]:
    """`attention_pattern` and `window` of a spec where layers above the first few may have a window (Qwen).

    `layer_types` says it layer by layer in newer files.
    """
    used, window = keys.take("use_sliding_window", False), keys.take("sliding_window", 4096)
    first, kinds = keys.take("max_window_layers", 28), keys.take("layer_types", None)
    if kinds is None:
        kinds = ["sliding" if used and layer >= first else "full" for layer in range(layers)]
    if len(kinds) != layers:
        keys.refuse(f"layer_types name {len(kinds)} layers, num_hidden_layers {layers}")
        return {}
    return keys.windows(window if used else None, kinds)


def upper_windows_to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """The inverse of `upper_windows_from_hf`."""
    kinds = layer_types(spec)
    published = {"use_sliding_window": spec.window is not None, "layer_types": kinds}
    if spec.window is None:
        return published
    return {
        **published,
        "sliding_window": spec.window,
        "max_window_layers": kinds.index("sliding_attention"),
    }


def outer_rows(scale: Same = Same()) -> tuple[Row, ...]:
    """Embedding, final norm and head."""
    return (
        row("model.embed_tokens.weight", "embed/embedding", Same()),
        row("model.norm.weight", "final_norm/scale", scale),
        row("lm_head.weight", "head/kernel", Matrix()),
    )


def attention_rows() -> tuple[Row, ...]:
    """Query, key, value and output with the biases and norms that a family may have."""
    theirs, ours = "model.layers.{}.self_attn.", "layers_{}/attention/"
    names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "out"))
    rows = [row(f"{theirs}{t}.weight", f"{ours}{o}/kernel", Matrix(1 + (o == "out"))) for t, o in names]
    rows += [row(f"{theirs}{t}.bias", f"{ours}{o}/bias", Vector()) for t, o in names]
    norms = (("q_norm", "query_norm"), ("k_norm", "key_norm"))
    return (*rows, *(row(f"{theirs}{t}.weight", f"{ours}{o}/scale", Same()) for t, o in norms))


def mlp_rows() -> tuple[Row, ...]:
    """Gate, up and down, with biases."""
    theirs, ours = "model.layers.{}.mlp.", "layers_{}/mlp/"
    names = ("gate", "up", "down")
    return (
        *(row(f"{theirs}{n}_proj.weight", f"{ours}{n}/kernel", Matrix()) for n in names),
        *(row(f"{theirs}{n}_proj.bias", f"{ours}{n}/bias", Vector()) for n in names),
    )


def norm_rows(names: Mapping[str, str], scale: Same = Same()) -> tuple[Row, ...]:
    """Norms of a layer: published name -> ours, `{"input_layernorm": "attention_norm"}`."""
    return tuple(
        row(f"model.layers.{{}}.{theirs}.weight", f"layers_{{}}/{ours}/scale", scale)
        for theirs, ours in names.items()
    )


#: What most descendants call their two norms.
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def hf_rows() -> tuple[Row, ...]:
    """All tensors of a descendant that has LLaMA's names throughout."""
    return (*outer_rows(), *norm_rows(NORMS), *attention_rows(), *mlp_rows())


def gguf_rows(paired: bool) -> tuple[Row, ...]:
    """Names in GGUF files.

    Args:
        paired: llama.cpp turns neighbouring coordinates in this architecture, so its converter has reordered
            the rows of q and k.
    """
    theirs, ours = "blk.{}.attn_", "layers_{}/attention/"
    names = (("q", "query"), ("k", "key"), ("v", "value"))
    turned = {t: paired and t != "v" for t, _ in names}
    mlp = ("gate", "up", "down")
    return (
        row("token_embd.weight", "embed/embedding", Same()),
        row("output_norm.weight", "final_norm/scale", Same()),
        row("output.weight", "head/kernel", Matrix()),
        row("blk.{}.attn_norm.weight", "layers_{}/attention_norm/scale", Same()),
        row("blk.{}.ffn_norm.weight", "layers_{}/mlp_norm/scale", Same()),
        *(row(f"{theirs}{t}.weight", f"{ours}{o}/kernel", Matrix(paired=turned[t])) for t, o in names),
        *(row(f"{theirs}{t}.bias", f"{ours}{o}/bias", Vector(paired=turned[t])) for t, o in names),
        row(f"{theirs}output.weight", f"{ours}out/kernel", Matrix(inputs=2)),
        row(f"{theirs}output.bias", f"{ours}out/bias", Vector()),
        row(f"{theirs}q_norm.weight", f"{ours}query_norm/scale", Same()),
        row(f"{theirs}k_norm.weight", f"{ours}key_norm/scale", Same()),
        *(row(f"blk.{{}}.ffn_{n}.weight", f"layers_{{}}/mlp/{n}/kernel", Matrix()) for n in mlp),
        *(row(f"blk.{{}}.ffn_{n}.bias", f"layers_{{}}/mlp/{n}/bias", Vector()) for n in mlp),
    )


def sizes_from_gguf(keys: Keys, tensors: Tensors) -> dict[str, Any]:
    """The fields of a spec that the metadata of every descendant has.

    Args:
        keys: with the architecture as prefix.
        tensors: of the file: whether there is a head of its own, and the vocabulary where no key says it.
    """
    heads, embed = keys.take("attention.head_count"), keys.take("embedding_length")
    head_dim = keys.take("attention.key_length", None) or embed // max(heads, 1)
    keys.only("attention.value_length", head_dim)
    keys.only("expert_count", 0)
    table = tensors.shapes.get("token_embd.weight", (0,))
    return {
        "vocab_size": keys.take("vocab_size", table[0]),
        "layers": keys.take("block_count"),
        "embed": embed,
        "heads": heads,
        "kv_heads": keys.take("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "mlp": keys.take("feed_forward_length"),
        "max_length": keys.take("context_length"),
        "norm_eps": single(keys.take("attention.layer_norm_rms_epsilon")),
        "rope_theta": single(keys.take("rope.freq_base", 10000.0)),
        "rope_scaling": _linear(keys),
        "tie_embeddings": "output.weight" not in tensors.shapes,
    }


def decoder_from_gguf(
    metadata: Mapping[str, Any], tensors: Tensors, architecture: str, **fixed: Any
) -> DecoderConfig:
    """The spec of a descendant whose metadata say no more than sizes; `fixed` are the fields of the family.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(metadata, prefix=f"{architecture}.", where="the GGUF file")
    sizes = sizes_from_gguf(keys, tensors)
    keys.only("rope.dimension_count", sizes["head_dim"])
    keys.finish()
    return DecoderConfig(**sizes, **fixed)


def sizes_to_gguf(spec: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The inverse of `sizes_from_gguf`."""
    values = {
        "block_count": spec.layers,
        "context_length": spec.max_length,
        "embedding_length": spec.embed,
        "feed_forward_length": spec.mlp_size,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "rope.freq_base": spec.rope_theta,
        "rope.dimension_count": spec.rope_dims,
        "vocab_size": spec.vocab_size,
    }
    if spec.rope_scaling is not None and spec.rope_scaling.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": spec.rope_scaling.factor}
    return {f"{architecture}.{key}": value for key, value in values.items()}


def gguf_head(spec: DecoderConfig, **others: Any) -> Arrays:
    """What reading metadata back must know of the tensors: whether there is a head, and `others` by name."""
    head = {} if spec.tie_embeddings else {"output.weight": np.empty(0, np.float32)}
    return Arrays("the GGUF file", {**head, **others})


def single(value: float) -> float:
    """A float32 number as the shortest decimal that means it, which is what was written there."""
    return float(str(np.float32(value)))


def _linear(keys: Keys) -> RopeScaling | None:
    factor, kind = single(keys.take("rope.scaling.factor", 1.0)), keys.take("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        keys.refuse(f"RoPE scaling {kind!r}, only 'none', 'linear' and factors of llama3 are implemented")
    return RopeScaling(kind="linear", factor=factor) if kind == "linear" and factor != 1.0 else None
