"""Rendering on several processes gives what one process gives, errors included."""

from __future__ import annotations

import pytest

from hllm_jax.data import DataConfig, DataError, SourceConfig, prepare, rendering
from hllm_jax.testing.corpora import conversations, write_conversations, write_jsonl
from hllm_jax.testing.tokenizer import ByteTokenizer
from hllm_jax.tokenizers.errors import MessageError, TemplateError


class Picky(ByteTokenizer):
    """Refuses one conversation, and breaks down at another."""

    def render(self, messages, tools=None, add_generation_prompt=False):
        if messages[0]["content"].startswith("Question 1500?"):
            raise MessageError("message 0 is refused")
        if messages[0]["content"].startswith("Question 5000?"):
            raise TemplateError("the template broke")
        return super().render(messages, tools, add_generation_prompt)


def section(path, workers, cache, **settings):
    source = SourceConfig(path=str(path), **settings)
    return DataConfig(sources=(source,), holdout=0.0, workers=workers, cache=str(cache))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path, workers):
    path = write_conversations(tmp_path / "a.jsonl", 5000)
    alone = prepare(section(path, 0, tmp_path / "0"), ByteTokenizer())
    helped = prepare(section(path, workers, tmp_path / "1"), ByteTokenizer())
    assert helped.stores[0].description == alone.stores[0].description
    limited = [
        prepare(section(path, w, tmp_path / f"l{w}", limit=3000), ByteTokenizer()).counts
        for w in (0, workers)
    ]
    assert limited[0] == limited[1]
    assert limited[0]["records"] == 3000


def test_workers_start_by_themselves_when_it_pays(tmp_path, monkeypatch):
    started = []
    workers = rendering.Workers
    monkeypatch.setattr(rendering, "WORTH_STARTING", 2000)
    monkeypatch.setattr(rendering, "Workers", lambda *given: started.append(given[0]) or workers(*given))
    monkeypatch.setattr(rendering.os, "cpu_count", lambda: 2)
    small = write_conversations(tmp_path / "a.jsonl", 1000)
    prepare(section(small, None, tmp_path / "0"), ByteTokenizer())
    assert started == []
    large = write_conversations(tmp_path / "b.jsonl", 5000)
    data = prepare(section(large, None, tmp_path / "0"), ByteTokenizer())
    assert started == [2]
    assert data.counts["records"] == 5000


@pytest.mark.parametrize("workers", [0, 2])
def test_refused_conversations_name_their_place_or_are_counted(tmp_path, workers):
    path = write_conversations(tmp_path / "a.jsonl", 3000)
    with pytest.raises(DataError, match=r"a\.jsonl:1501: message 0 is refused"):
        prepare(section(path, workers, tmp_path / "0"), Picky())
    assert list((tmp_path / "0").iterdir()) == []
    counts = prepare(section(path, workers, tmp_path / "0", malformed="skip"), Picky()).counts
    assert (counts["malformed"], counts["records"]) == (1, 2999)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_template_ends_the_preparation(tmp_path, workers):
    path = write_jsonl(tmp_path / "a.jsonl", conversations(6000))
    with pytest.raises(TemplateError, match="the template broke"):
        prepare(section(path, workers, tmp_path / "0", malformed="skip"), Picky())
    assert list((tmp_path / "0").iterdir()) == []
