"""`hllm_jax.load`: any MODEL, ready to be asked."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hllm_jax.generation.language_model import LanguageModel
from hllm_jax.generation.seq2seq import Seq2SeqModel
from hllm_jax.generation.text_encoder import TextEncoder
from hllm_jax.models.config import Execution
from hllm_jax.models.spec import EncoderConfig, EncoderDecoderConfig


def load(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
) -> LanguageModel | Seq2SeqModel | TextEncoder:
    """Load a model with its tokenizer, if it has one.

    Args:
        model: a run folder (its newest checkpoint), a checkpoint, a Hugging Face folder, a `.gguf` file,
            LLaMA in Meta's names (`.pth`), or a registered name (`"smollm2-135m-instruct"`,
            `"all-minilm-l6-v2"`).
        adapter: a folder of `peft`'s, or a run with `lora:`, whose adapters are merged into the weights.
        dtype: of weights and computation, "float32" or "bfloat16"; None: float32 on CPU, bfloat16 elsewhere.

    Returns:
        A decoder as a `LanguageModel`, an encoder-decoder as a `Seq2SeqModel`, an encoder as a `TextEncoder`.

    Raises:
        ValueError: `model` names nothing that can be loaded, or its files do not fit together; the `adapter`
            is one of another model; `dtype` is another one.
    """
    from hllm_jax.interop.sentence_transformers import read_pooling
    from hllm_jax.training.pretrained import open_pretrained

    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16", jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype is {dtype!r}, must be 'float32' or 'bfloat16'")
    kind = cast('Literal["float32", "bfloat16"]', jnp.dtype(dtype).name)
    opened = open_pretrained(model, adapter)

    def place(path: str, array: np.ndarray) -> jax.Array:
        del path
        return jnp.asarray(array, kind)

    # One subtree per layer: a scan would copy each layer's weights out of the stack for every token.
    variables: dict[str, Any] = {"params": opened.read(False, place)}
    execution = Execution(dtype=kind, param_dtype=kind, scan_layers=False)
    config, tokenizer = opened.config, opened.tokenizer
    if isinstance(config, EncoderConfig):
        return TextEncoder(config.build(execution), variables, tokenizer, read_pooling(model))
    if isinstance(config, EncoderDecoderConfig):
        return Seq2SeqModel(config.build(execution), variables, tokenizer)
    return LanguageModel(config.build(execution), variables, tokenizer)


def load_language_model(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
) -> LanguageModel:
    """`load` where text is to be continued.

    Raises:
        ValueError: as `load`; or the model is of another kind.
    """
    loaded = load(model, adapter, dtype)
    if not isinstance(loaded, LanguageModel):
        raise ValueError(
            f"{model} is of the kind {loaded.config.architecture}, and only a decoder goes on with a text or "
            "a conversation; `hllm generate` asks an encoder-decoder too"
        )
    return loaded
