"""The table a person looks at shows tokens, weights, segments, counts and licences of the real batch."""

from __future__ import annotations

import io

from rich.console import Console

from hllm_jax.data import DataConfig, SourceConfig, inspect
from hllm_jax.testing.corpora import CONVERSATIONS, write_jsonl
from hllm_jax.testing.tokenizer import ByteTokenizer


def test_inspect_shows_what_is_trained(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", CONVERSATIONS)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), packing="first_fit", holdout=0.0)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(inspect(config, ByteTokenizer(), batch_size=1, sequence_length=256, rows=1, tokens=30))
    shown = console.export_text()
    for part in (
        "<|im_start|>",
        "<|im_end|>",
        "weight",
        "segment",
        "trained tokens: ",
        "first_fit, overlong: truncate",
    ):
        assert part in shown
    assert "the user's own files" in shown
    weights = sum(sum(ByteTokenizer().render(messages)[1]) for messages in CONVERSATIONS)
    assert f"{weights} trained" in shown
