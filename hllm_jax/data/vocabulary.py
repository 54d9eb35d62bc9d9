"""The tokenizer of a run: loaded from a folder, or trained on the training split of its data and cached."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hllm_jax.config import cache_dir
from hllm_jax.data.preparation import new_folder
from hllm_jax.data.sources import digest, open_source, texts

if TYPE_CHECKING:
    from hllm_jax.data.config import DataConfig
    from hllm_jax.tokenizers.config import TokenizerConfig
    from hllm_jax.tokenizers.tokenizer import Tokenizer

FORMAT = 1


def tokenizer_for(config: TokenizerConfig, data: DataConfig) -> Tokenizer:
    """The tokenizer that a run's `tokenizer:` and `data:` sections ask for.

    With `path` it is loaded. Otherwise it is trained on the train split of all sources (never on held-out
    text) and kept under a key made of the sources' content and all training settings.

    Raises:
        DataError: no usable record to train on.
    """
    from hllm_jax.tokenizers import load_tokenizer, train_tokenizer
    from hllm_jax.tokenizers.train import template_text

    if config.path is not None:
        tokenizer = load_tokenizer(config.path)
        return tokenizer.with_template(template_text(config)) if config.chat_template else tokenizer
    folder = cache_dir() / "tokenizers" / tokenizer_key(config, data)[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as unfinished:
            train_tokenizer(texts(data), config).save(unfinished)
    # The template is read anew: its file may have been edited since, and training depends on nothing in it.
    return load_tokenizer(folder).with_template(template_text(config))


def tokenizer_key(config: TokenizerConfig, data: DataConfig) -> str:
    """Digest of everything that determines a trained tokenizer."""
    sources: list[str] = []
    for source in data.sources:
        opened = open_source(source, "train", data.holdout)
        filters = dataclasses.replace(source, weight=None, name=None, path=source.label)
        sources += [opened.fingerprint, repr(opened.share), repr(filters)]
    return digest(f"format {FORMAT}", repr(config), *sources)
