"""GPT-Neo (Black et al. 2021), and GPT-3 (Brown et al. 2020) as far as GPT-Neo's format can say it.

Layers see everything and a band of the last tokens by turns. Scores are not scaled, and query, key and value
have no biases. GPT-3 is "the same model and architecture as GPT-2" with such bands, so it scales, and has the
biases. Its weights were never published, and little is missing here that training could learn: the scale is
folded into the initial query (see `MultiHeadAttention`), a bias of the keys changes no softmax, and one of
the values can be the output's. Only a bias of the queries has no counterpart. GPT-3 with all biases is a
`DecoderConfig` with `qkv_bias`, which no published class loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families import gpt_like
from hllm_jax.models.families.forms import Matrix, Vector
from hllm_jax.models.families.published import Keys, activation_to_hf, refuse_unsaid
from hllm_jax.models.families.table import Table, row
from hllm_jax.models.spec import DecoderConfig

HF_TYPES = ("gpt_neo",)

_LAYER = "transformer.h.{}"
_ATTENTION = f"{_LAYER}.attn.attention"

HF_NAMES = Table(
    rows=(
        *gpt_like.outer_rows("transformer.wte.weight", "transformer.wpe.weight"),
        *gpt_like.norm_rows(f"{_LAYER}.ln_1", "layers_{}/attention_norm"),
        *(
            row(f"{_ATTENTION}.{name[0]}_proj.weight", f"layers_{{}}/attention/{name}/kernel", Matrix())
            for name in ("query", "key", "value")
        ),
        row(f"{_ATTENTION}.out_proj.weight", "layers_{}/attention/out/kernel", Matrix(inputs=2)),
        row(f"{_ATTENTION}.out_proj.bias", "layers_{}/attention/out/bias", Vector()),
        *gpt_like.norm_rows(f"{_LAYER}.ln_2", "layers_{}/mlp_norm"),
        *gpt_like.mlp_rows(f"{_LAYER}.mlp.c_fc", f"{_LAYER}.mlp.c_proj", transposed=True),
        *gpt_like.norm_rows("transformer.ln_f", "final_norm"),
    ),
    # Causal masks, which old versions of transformers saved.
    ignored=(f"{_ATTENTION}.bias", f"{_ATTENTION}.masked_bias"),
    tied=("lm_head.weight",),
    prefix="transformer.",
)

_FIXED: dict[str, Any] = {**gpt_like.FIXED, "attention_scale": 1.0}


def _size(layers: int, embed: int, heads: int) -> DecoderConfig:
    return DecoderConfig(
        **_FIXED,
        vocab_size=50257,
        max_length=2048,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=4 * embed,
        activation="gelu_tanh",
        attention_pattern=("full", "window"),
        window=256,
    )


# Brown et al. 2020, table 2.1. Two of its rows contradict themselves: XL's 24 heads of 128 are not its width
# of 2048 (16 are, and give its 1.3 billion parameters), and 13B's 40 heads of 128 are 5120, not 5140. The
# width of the bands is not published; GPT-Neo's is taken.
PRESETS: dict[str, DecoderConfig] = {
    "gpt-neo-125m": _size(12, 768, 12),
    "gpt-neo-1.3b": _size(24, 2048, 16),
    "gpt-neo-2.7b": _size(32, 2560, 20),
    "gpt3-small": _size(12, 768, 12),
    "gpt3-medium": _size(24, 1024, 16),
    "gpt3-large": _size(24, 1536, 16),
    "gpt3-xl": _size(24, 2048, 16),
    "gpt3-2.7b": _size(32, 2560, 32),
    "gpt3-6.7b": _size(32, 4096, 32),
    "gpt3-13b": _size(40, 5120, 40),
    "gpt3-175b": _size(96, 12288, 96),
}


def from_hf(published: Mapping[str, Any]) -> DecoderConfig:
    """config.json of a `GPTNeoForCausalLM` to our spec.

    Raises:
        ConfigRefused: a needed key is missing, or a feature is asked for that would change the logits.
    """
    # `attention_layers` is `attention_types` spelled out.
    silent = ("attention_layers", "classifier_dropout", "embed_dropout")
    keys = Keys(published, silent=(*gpt_like.SILENT, *silent))
    embed, heads = keys.take("hidden_size"), keys.take("num_heads")
    types = keys.take("attention_types", [[["global", "local"], 12]])
    kinds = [kind for period, times in types for kind in list(period) * times]
    layers, window = keys.take("num_layers"), keys.take("window_size", 256)
    if len(kinds) != layers:
        keys.refuse(f"attention_types say {len(kinds)} layers, num_layers {layers}")
        kinds = ["global"] * layers
    spec = DecoderConfig(
        **_FIXED,
        **keys.windows(window, kinds),
        vocab_size=keys.take("vocab_size"),
        max_length=keys.take("max_position_embeddings", 2048),
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=heads,
        mlp=keys.take("intermediate_size", 4 * embed),
        activation=keys.activation("activation_function", "gelu_new"),
        norm_eps=keys.take("layer_norm_epsilon", 1e-5),
        dropout=keys.take("resid_dropout", 0.0),
        attention_dropout=keys.take("attention_dropout", 0.0),
        tie_embeddings=keys.take("tie_word_embeddings", True),
    )
    keys.finish()
    return spec


def to_hf(spec: DecoderConfig) -> dict[str, Any]:
    """Our spec as the config.json of a `GPTNeoForCausalLM`; the inverse of `from_hf`.

    Raises:
        ConfigRefused: the spec has what that class does not.
    """
    gpt_like.refuse_other_heads(spec, "GPTNeoForCausalLM")
    names = {"full": "global", "window": "local"}
    period = [names[kind] for kind in spec.attention_pattern]
    published = {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": HF_TYPES[0],
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_length,
        "num_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_heads": spec.heads,
        "intermediate_size": None if spec.mlp_size == 4 * spec.embed else spec.mlp_size,
        "attention_types": [[period, spec.layers // len(period)]],
        "activation_function": activation_to_hf(spec.activation),
        "layer_norm_epsilon": spec.norm_eps,
        "resid_dropout": spec.dropout,
        "embed_dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
        "tie_word_embeddings": spec.tie_embeddings,
        "initializer_range": spec.init_std,
    }
    if spec.window is not None:
        published["window_size"] = spec.window
    refuse_unsaid(spec, from_hf(published), "GPTNeoForCausalLM")
    return published
