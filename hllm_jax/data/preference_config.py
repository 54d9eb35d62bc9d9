"""The `pairs:` section: how preferences become rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hllm_jax.config import Invalid, config

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.transforms.piece import Transform
    from hllm_jax.tokenizers.tokenizer import Tokenizer


@config
class PairDataConfig:
    """Pairs of a better and a worse answer, see `data/preferences.py`.

    Attributes:
        form: `chat`: prompt and answer are rendered by the chat template, whose span of the answer is what
            counts. `text`: the answer goes on where the prompt ends, and the end of text is part of it.
        unpaired: records are single answers, good or bad (`{"prompt", "completion", "label"}`), and one side
            of each row is empty: for KTO.
    """

    form: Literal["chat", "text"] = "chat"
    unpaired: bool = False

    @property
    def described(self) -> str:
        """The section in a line."""
        return str(self)

    def transform(
        self, tokenizer: Tokenizer, sequence_length: int, decoder_start: int | None = None
    ) -> Transform:
        """How preferences become rows; see `ObjectiveConfig.transform`."""
        from hllm_jax.data.transforms.preferences import PairRows

        del decoder_start
        return PairRows(sequence_length, tokenizer.pad_id, self.form, self.unpaired)


def check_pairs(data: DataConfig, pairs: PairDataConfig, loss: str) -> None:
    """Refuse sections that do not go together; for the `__post_init__` of a recipe's config.

    Args:
        data, pairs: the sections.
        loss: what is learned, for which pairs are needed unless it is `kto`.

    Raises:
        Invalid: names everything that does not fit.
    """
    Invalid.check(
        [
            (
                data.packing != "none",
                "data.packing",
                f"{data.packing} is not done: every pair has a row of its own; set none",
            ),
            (
                data.overlong == "split",
                "data.overlong",
                "a pair cannot be split: choose truncate (the ends of the answers), drop or error",
            ),
            (
                pairs.unpaired and loss != "kto",
                "pairs.unpaired",
                f"{loss} compares two answers to a prompt: single ones are for dpo.loss=kto",
            ),
        ]
    )
