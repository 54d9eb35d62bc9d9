"""LLaMA (Touvron et al. 2023) and what is built like it: TinyLlama, SmolLM2, the book's Tiny-K."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hllm_jax.models.config import DecoderConfig
from hllm_jax.models.families.table import Matrix, Same, Table

log = logging.getLogger(__name__)

#: `model_type` of config.json and `general.architecture` of GGUF.
HF_TYPE = "llama"
GGUF_ARCHITECTURE = "llama"

HF_NAMES = Table(
    rows=(
        ("model.embed_tokens.weight", "embed/embedding", Same()),
        ("model.layers.{}.input_layernorm.weight", "layers_{}/attention_norm/scale", Same()),
        ("model.layers.{}.self_attn.q_proj.weight", "layers_{}/attention/query/kernel", Matrix()),
        ("model.layers.{}.self_attn.k_proj.weight", "layers_{}/attention/key/kernel", Matrix()),
        ("model.layers.{}.self_attn.v_proj.weight", "layers_{}/attention/value/kernel", Matrix()),
        ("model.layers.{}.self_attn.o_proj.weight", "layers_{}/attention/out/kernel", Matrix(inputs=2)),
        ("model.layers.{}.post_attention_layernorm.weight", "layers_{}/mlp_norm/scale", Same()),
        ("model.layers.{}.mlp.gate_proj.weight", "layers_{}/mlp/gate/kernel", Matrix()),
        ("model.layers.{}.mlp.up_proj.weight", "layers_{}/mlp/up/kernel", Matrix()),
        ("model.layers.{}.mlp.down_proj.weight", "layers_{}/mlp/down/kernel", Matrix()),
        ("model.norm.weight", "final_norm/scale", Same()),
        ("lm_head.weight", "head/kernel", Matrix()),
    ),
    # Old versions of transformers saved the RoPE frequencies, which follow from the config.
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    tied="lm_head.weight",
)

#: llama.cpp turns neighbouring coordinates, so its converter has reordered the rows of q and k.
GGUF_NAMES = Table(
    rows=(
        ("token_embd.weight", "embed/embedding", Same()),
        ("blk.{}.attn_norm.weight", "layers_{}/attention_norm/scale", Same()),
        ("blk.{}.attn_q.weight", "layers_{}/attention/query/kernel", Matrix(paired=True)),
        ("blk.{}.attn_k.weight", "layers_{}/attention/key/kernel", Matrix(paired=True)),
        ("blk.{}.attn_v.weight", "layers_{}/attention/value/kernel", Matrix()),
        ("blk.{}.attn_output.weight", "layers_{}/attention/out/kernel", Matrix(inputs=2)),
        ("blk.{}.ffn_norm.weight", "layers_{}/mlp_norm/scale", Same()),
        ("blk.{}.ffn_gate.weight", "layers_{}/mlp/gate/kernel", Matrix()),
        ("blk.{}.ffn_up.weight", "layers_{}/mlp/up/kernel", Matrix()),
        ("blk.{}.ffn_down.weight", "layers_{}/mlp/down/kernel", Matrix()),
        ("output_norm.weight", "final_norm/scale", Same()),
        ("output.weight", "head/kernel", Matrix()),
    ),
)

_LLAMA_2: dict[str, Any] = {"vocab_size": 32000, "max_length": 4096, "tie_embeddings": False}
_SMOLLM2: dict[str, Any] = {"vocab_size": 49152, "max_length": 8192, "rope_theta": 100000.0}

PRESETS: dict[str, DecoderConfig] = {
    "book-82m": DecoderConfig(),
    "book-215m": DecoderConfig(embed=1024, layers=18),
    "llama-2-7b": DecoderConfig(layers=32, embed=4096, heads=32, kv_heads=32, mlp=11008, **_LLAMA_2),
    "llama-2-13b": DecoderConfig(layers=40, embed=5120, heads=40, kv_heads=40, mlp=13824, **_LLAMA_2),
    "llama-2-70b": DecoderConfig(layers=80, embed=8192, heads=64, kv_heads=8, mlp=28672, **_LLAMA_2),
    "smollm2-135m": DecoderConfig(layers=30, embed=576, heads=9, kv_heads=3, mlp=1536, **_SMOLLM2),
    "smollm2-360m": DecoderConfig(layers=32, embed=960, heads=15, kv_heads=5, mlp=2560, **_SMOLLM2),
    "tinyllama-1.1b": DecoderConfig(
        layers=22,
        embed=2048,
        heads=32,
        kv_heads=4,
        mlp=5632,
        vocab_size=32000,
        max_length=2048,
        tie_embeddings=False,
    ),
}

# What config.json may say that has no effect on the logits.
_SILENT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        "is_llama_config",
        "transformers.js_config",
    }
)


class ConfigRefused(ValueError):
    """A published config that asks for what this decoder does not do, or ours that the format cannot say."""


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `LlamaForCausalLM` to our spec, in the spellings before and after transformers 5.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    left = {key: value for key, value in published.items() if key not in _SILENT}

    def take(key: str, *default: Any) -> Any:
        if key not in left and not default:
            raise ConfigRefused(f"config.json has no {key!r}")
        value = left.pop(key, default[0] if default else None)
        return default[0] if value is None and default else value

    rope = {**(take("rope_scaling", None) or {}), **(take("rope_parameters", None) or {})}
    theta = take("rope_theta", None)
    kind = rope.pop("rope_type", rope.pop("type", None)) or "default"
    heads = take("num_attention_heads")
    wrong = [
        f"{key} {value!r}, only {only!r} is implemented"
        for key, value, only in (
            ("rope_parameters.rope_type", kind, "default"),
            ("hidden_act", take("hidden_act", "silu"), "silu"),
            ("attention_bias", take("attention_bias", False), False),
            ("mlp_bias", take("mlp_bias", False), False),
            ("rope_parameters.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        )
        if value != only
    ]
    if wrong:
        raise ConfigRefused("config.json: " + "; ".join(wrong))
    spec = DecoderConfig(
        vocab_size=take("vocab_size"),
        layers=take("num_hidden_layers"),
        embed=take("hidden_size"),
        heads=heads,
        kv_heads=take("num_key_value_heads", heads),
        head_dim=take("head_dim", None),
        mlp=take("intermediate_size"),
        max_length=take("max_position_embeddings", 2048),
        norm_eps=take("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", theta if theta is not None else 10000.0)),
        rope_pairing="interleaved" if take("rope_interleaved", False) else "half",
        tie_embeddings=take("tie_word_embeddings", False),
    )
    unknown = sorted(key for key, value in left.items() if value not in (None, False, ""))
    if unknown:
        log.warning("config.json: keys that are not known here, and so not obeyed: %s", ", ".join(unknown))
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `LlamaForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    plain = DecoderConfig()
    wrong = [
        f"{key} is {getattr(spec, key)!r}"
        for key in ("rope_pairing", "logit_softcap", "attention_softcap", "window")
        if getattr(spec, key) != getattr(plain, key)
    ]
    if wrong:
        raise ConfigRefused("LlamaForCausalLM cannot say: " + ", ".join(wrong))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": HF_TYPE,
        "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "intermediate_size": spec.mlp_size,
        "max_position_embeddings": spec.max_length,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "tie_word_embeddings": spec.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": spec.init_std,
    }


def from_gguf(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """GGUF metadata (keys `llama.*`) to our spec.

    Args:
        metadata: all keys of the file.
        shapes: of its tensors: whether there is a head of its own, and the vocabulary where no key says it.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """

    def take(key: str, *default: Any) -> Any:
        full = f"{GGUF_ARCHITECTURE}.{key}"
        if full not in metadata and not default:
            raise ConfigRefused(f"the file has no metadata key {full!r}")
        return metadata.get(full, *default)

    heads, embed = take("attention.head_count"), take("embedding_length")
    head_dim = take("attention.key_length", None) or embed // max(heads, 1)
    wrong = [
        f"{key} is {value!r}, only {only!r} is implemented"
        for key, value, only in (
            ("llama.rope.scaling.type", take("rope.scaling.type", "none"), "none"),
            ("llama.rope.dimension_count", take("rope.dimension_count", head_dim), head_dim),
            ("llama.attention.value_length", take("attention.value_length", head_dim), head_dim),
            ("llama.expert_count", take("expert_count", 0), 0),
        )
        if value != only
    ]
    if wrong:
        raise ConfigRefused("; ".join(wrong))
    table = shapes.get("token_embd.weight", (0,))
    return DecoderConfig(
        vocab_size=take("vocab_size", table[0]),
        layers=take("block_count"),
        embed=embed,
        heads=heads,
        kv_heads=take("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=take("feed_forward_length"),
        max_length=take("context_length"),
        # The file holds float32; the shortest decimal that means the same float32 is what was written there.
        norm_eps=float(f"{take('attention.layer_norm_rms_epsilon'):.7g}"),
        rope_theta=float(f"{take('rope.freq_base', 10000.0):.9g}"),
        tie_embeddings="output.weight" not in shapes,
    )
