"""A tokenizer alone: text in, a tokenizer folder out, and how well it packs held-out text.

    hllm train configs/tokenizer/tiny.yaml tokenizer.kind=unigram

Other recipes train the tokenizer that they need by themselves; `tokenizer.path` makes them take this one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from hllm_jax import data
from hllm_jax.config import config, to_yaml
from hllm_jax.data.config import DataConfig
from hllm_jax.parallel.config import DistributedConfig
from hllm_jax.tokenizers.config import TokenizerConfig
from hllm_jax.tokenizers.tokenizer import Tokenizer
from hllm_jax.training.config import RunConfig

#: Held-out documents of each source that are measured.
MEASURED = 1000


@config
class Config:
    """What to train on, what, and where it goes."""

    recipe: str = "tokenizer"
    run: RunConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    distributed: DistributedConfig = DistributedConfig()


def main(config: Config) -> Tokenizer | None:
    """What `train` does, in one process; the others wait for it, and have no tokenizer."""
    from hllm_jax.parallel import distributed

    distributed.start(config.distributed)
    with distributed.coordinator_first("tokenizer"):
        return train(config) if distributed.process() == 0 else None


def train(config: Config) -> Tokenizer:
    """Train (or take from the cache), save, measure."""
    folder = Path(config.run.dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), "utf-8")

    tokenizer = data.tokenizer_for(config.tokenizer, config.data)
    tokenizer.save(folder / "tokenizer")
    print(f"{folder / 'tokenizer'}: {tokenizer.vocab_size} ids, {tokenizer.kind}")

    held_out = list(itertools.islice(data.texts(config.data, "validation"), MEASURED))
    ids = tokenizer.encode_batch(held_out)
    size, tokens = sum(len(text.encode()) for text in held_out), sum(map(len, ids))
    exact = all(tokenizer.decode(row) == text for row, text in zip(ids, held_out, strict=True))
    print(f"{len(held_out)} held-out texts: {size / max(tokens, 1):.2f} bytes a token, lossless: {exact}")
    return tokenizer
