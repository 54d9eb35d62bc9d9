"""Mixtral (Jiang et al. 2024): Mistral with a mixture of eight feed-forward networks in each layer.

Checkpoints hold three matrices for each expert; llama.cpp, which knows the family as `llama` with experts,
three tensors for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import llama_like
from hllm_jax.models.families.forms import Batched, Matrix, Separate
from hllm_jax.models.families.published import ConfigRefused, Keys, refuse_unsaid
from hllm_jax.models.families.table import Row, Table, Tensors, row
from hllm_jax.models.spec import DecoderConfig
from hllm_jax.nn.config import Experts

HF_TYPES = ("mixtral",)
GGUF_ARCHITECTURES = ("llama",)

_HF = "model.layers.{}.block_sparse_moe."


def _experts(router: str, kernel: str, form: Any, names: Mapping[str, str]) -> tuple[Row, ...]:
    """Router and matrices; `names` are theirs of gate, up and down, put into `kernel`."""
    ours = "layers_{}/experts/"
    rows = (row(kernel.replace("*", theirs), f"{ours}{name}/kernel", form) for name, theirs in names.items())
    return (row(router, f"{ours}router/kernel", Matrix()), *rows)


HF_NAMES = Table(
    rows=(
        *_experts(
            f"{_HF}gate.weight",
            f"{_HF}experts.{{each}}.*.weight",
            Separate(Matrix()),
            {"gate": "w1", "up": "w3", "down": "w2"},
        ),
        *llama_like.hf_rows(),
    ),
    tied=("lm_head.weight",),
)

GGUF_NAMES = Table(
    rows=(
        *_experts(
            "blk.{}.ffn_gate_inp.weight",
            "blk.{}.ffn_*_exps.weight",
            Batched(Matrix()),
            {name: name for name in ("gate", "up", "down")},
        ),
        *llama_like.gguf_rows(paired=True),
    ),
    tied=("output.weight",),
)


def _size(layers: int, embed: int, heads: int, mlp: int, max_length: int, balance: float) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=32000,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=8,
        mlp=mlp,
        max_length=max_length,
        rope_theta=1e6,
        experts=Experts(count=8, per_token=2, load_balance=balance),
        tie_embeddings=False,
    )


PRESETS: dict[str, DecoderConfig] = {
    "mixtral-8x7b": _size(32, 4096, 32, 14336, 32768, 0.02),
    "mixtral-8x22b": _size(56, 6144, 48, 16384, 65536, 0.001),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `MixtralForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    keys = Keys(published, silent=("output_router_logits", "router_jitter_noise"))
    window = keys.take("sliding_window", None)
    spec = DecoderConfig(
        **llama_like.sizes_from_hf(keys),
        **keys.rope(),
        **keys.windows(window, ["full" if window is None else "sliding"]),
        experts=Experts(
            count=keys.take("num_local_experts", 8),
            per_token=keys.take("num_experts_per_tok", 2),
            load_balance=keys.take("router_aux_loss_coef", 0.001),
        ),
        tie_embeddings=keys.take("tie_word_embeddings", False),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `MixtralForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not, or no experts.
    """
    experts = _of(spec)
    published = {
        **llama_like.sizes_to_hf(spec, "MixtralForCausalLM", HF_TYPES[0]),
        "sliding_window": spec.window,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.load_balance,
    }
    refuse_unsaid(spec, from_hf(published), "MixtralForCausalLM")
    return published


def from_gguf(metadata: Mapping[str, Any], tensors: Tensors) -> DecoderConfig:
    """GGUF metadata (keys `llama.*`) to our spec.

    Raises:
        ConfigRefused: there are no experts, a needed key is missing, or a feature is asked for that would
            change the logits.
    """
    keys = Keys(metadata, prefix="llama.", where="the GGUF file")
    count = keys.take("expert_count", 0)
    if count == 0:
        raise ConfigRefused("the GGUF file: no experts")
    experts = Experts(count=count, per_token=keys.take("expert_used_count"))
    sizes = llama_like.sizes_from_gguf(keys, tensors)
    keys.only("rope.dimension_count", sizes["head_dim"])
    keys.only("attention.scale", 0.0)
    keys.finish()
    return DecoderConfig(**sizes, experts=experts)


def to_gguf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as GGUF metadata; the inverse of `from_gguf`.

    Raises:
        ConfigRefused: the spec has what llama.cpp's `llama` does not, or no experts.
    """
    experts = _of(spec)
    metadata = llama_like.sizes_to_gguf(spec, GGUF_ARCHITECTURES[0])
    metadata |= {"llama.expert_count": experts.count, "llama.expert_used_count": experts.per_token}
    refuse_unsaid(spec, from_gguf(metadata, llama_like.gguf_head(spec)), "llama.cpp's llama with experts")
    return metadata


def _of(spec: DecoderConfig) -> Experts:
    if spec.experts is None:
        raise ConfigRefused("Mixtral has experts in every layer, this model has none")
    return spec.experts
