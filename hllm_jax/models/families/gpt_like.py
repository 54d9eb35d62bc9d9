"""What the GPTs share: learned positions, biases everywhere, LayerNorm, names of tensors under `h.{}`."""

from __future__ import annotations

from typing import Any

from hllm_jax.models.families.forms import Joined, Matrix, Same, Vector
from hllm_jax.models.families.published import ConfigRefused
from hllm_jax.models.families.table import Row, row
from hllm_jax.models.spec import DecoderConfig

#: Fields of a spec that no config.json of a GPT says.
FIXED: dict[str, Any] = {
    "norm": "layer",
    "position": "learned",
    "gated": False,
    "out_bias": True,
    "mlp_bias": True,
}

#: Keys of config.json for heads that are not read here, and of old versions.
SILENT = (
    "finetuning_task",
    "gradient_checkpointing",
    "n_ctx",
    "n_special",
    "predict_special_tokens",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "_num_labels",
)

_QKV = ("query", "key", "value")


def norm_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Scale and bias of a LayerNorm."""
    return row(f"{theirs}.weight", f"{ours}/scale", Same()), row(f"{theirs}.bias", f"{ours}/bias", Same())


def outer_rows(tokens: str, positions: str, head: str = "lm_head.weight") -> tuple[Row, ...]:
    """The two embeddings, and the head where it is not tied."""
    return (
        row(tokens, "embed/embedding", Same()),
        row(positions, "position/embedding", Same()),
        row(head, "head/kernel", Matrix()),
    )


def attention_rows(joined: str, out: str, transposed: bool) -> tuple[Row, ...]:
    """Query, key and value in one tensor, and the output.

    Args:
        joined, out: their names without `.weight` and `.bias`.
        transposed: whether matrices are `[outputs, inputs]`; false for `Conv1D`.
    """
    ours = "layers_{}/attention/"
    kernels, biases = (tuple(f"{ours}{name}/{leaf}" for name in _QKV) for leaf in ("kernel", "bias"))
    return (
        row(f"{joined}.weight", kernels, Joined(Matrix(transposed=transposed), axis=0 if transposed else 1)),
        row(f"{joined}.bias", biases, Joined(Vector())),
        row(f"{out}.weight", f"{ours}out/kernel", Matrix(inputs=2, transposed=transposed)),
        row(f"{out}.bias", f"{ours}out/bias", Vector()),
    )


def mlp_rows(up: str, down: str, transposed: bool) -> tuple[Row, ...]:
    """The two matrices and their biases; arguments as for `attention_rows`."""
    names = ((up, "layers_{}/mlp/up"), (down, "layers_{}/mlp/down"))
    return (
        *(row(f"{theirs}.weight", f"{ours}/kernel", Matrix(transposed=transposed)) for theirs, ours in names),
        *(row(f"{theirs}.bias", f"{ours}/bias", Vector()) for theirs, ours in names),
    )


def refuse_other_heads(spec: DecoderConfig, name: str) -> None:
    """Refuse heads that a GPT's config.json has no key for.

    Raises:
        ConfigRefused: keys and values are shared, or the heads together are not as wide as the stream.
    """
    if spec.kv_heads != spec.heads or spec.heads * spec.head_size != spec.embed:
        raise ConfigRefused(
            f"{name} cannot say: {spec.heads} heads and {spec.kv_heads} kv heads of {spec.head_size} in a "
            f"stream of {spec.embed}; it has as many kv heads as heads, together as wide as the stream"
        )
