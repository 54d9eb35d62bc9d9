"""Texts that a model writes beside its training, for `training.sample`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hllm_jax.generation.language_model import LanguageModel

if TYPE_CHECKING:
    from hllm_jax.models.layout import Model
    from hllm_jax.parallel.state import TrainState, Tree
    from hllm_jax.tokenizers.tokenizer import Tokenizer
    from hllm_jax.training.config import SampleConfig


def sample_writer(
    model: Model,
    tokenizer: Tokenizer,
    samples: SampleConfig,
    raw: bool = False,
    of: Callable[[Tree], Tree] = dict,
) -> Callable[[TrainState], list[dict[str, str]]]:
    """From a state to what its model goes on with, `prompt` and `text` of each prompt of the section.

    Args:
        model: the decoder.
        tokenizer: of it.
        samples: the section `log.samples`.
        raw: prompts are not put into the chat template.
        of: from the variables of the state to those of the model, where there are others beside it.
    """

    def write(state: TrainState) -> list[dict[str, str]]:
        variables: dict[str, Any] = of(state.variables)
        texts = LanguageModel(model, variables, tokenizer).generate(
            list(samples.prompts), max_tokens=samples.max_tokens, temperature=samples.temperature, raw=raw
        )
        return [{"prompt": p, "text": t.text} for p, t in zip(samples.prompts, texts, strict=True)]

    return write
