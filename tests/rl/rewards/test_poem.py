"""Regulated verse: famous poems keep the rules, and each way of breaking one costs what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hllm_jax.data.corpora.verse import Verse, lines_of
from hllm_jax.rl.rewards import poem as module
from hllm_jax.rl.rewards.poem import Judgement, judge, poem

# Tones and rhymes of the characters below, as hllm_jax.data.corpora.verse learns them (see test_verse.py).
RECORDED = json.loads((Path(__file__).parent / "verse.json").read_text("utf-8"))
TABLE = Verse(tones=RECORDED["tones"], rhymes=RECORDED["rhymes"])

GOOD = {
    "王之渙 登鸛雀樓": "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。",
    "王維 相思": "紅豆生南國，春來發幾枝。願君多采擷，此物最相思。",
    "孟浩然 宿建德江": "移舟泊煙渚，日暮客愁新。野曠天低樹，江清月近人。",  # with the licence, 平平仄平仄
    "李白 早發白帝城": "朝辭白帝彩雲間，千里江陵一日還。兩岸猿聲啼不住，輕舟已過萬重山。",
    "張繼 楓橋夜泊": "月落烏啼霜滿天，江楓漁火對愁眠。姑蘇城外寒山寺，夜半鐘聲到客船。",
    "杜甫 絕句": "兩箇黃鸝鳴翠柳，一行白鷺上青天。窗含西嶺千秋雪，門泊東吳萬里船。",
    "杜甫 春望": "國破山河在，城春草木深。感時花濺淚，恨別鳥驚心。"
    "烽火連三月，家書抵萬金。白頭搔更短，渾欲不勝簪。",
    "王維 山居秋暝": "空山新雨後，天氣晚來秋。明月松間照，清泉石上流。"
    "竹喧歸浣女，蓮動下漁舟。隨意春芳歇，王孫自可留。",
    "杜甫 登高": "風急天高猿嘯哀，渚清沙白鳥飛迴。無邊落木蕭蕭下，不盡長江滾滾來。"
    "萬里悲秋常作客，百年多病獨登臺。艱難苦恨繁霜鬢，潦倒新停濁酒杯。",
}
TOWER = "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"


def judged(text: str, count: int = 4, size: int = 5) -> Judgement:
    return judge(lines_of(text), count, size, TABLE)


@pytest.mark.parametrize("name", GOOD)
def test_famous_poems_keep_the_rules(name: str) -> None:
    lines = lines_of(GOOD[name])
    assert judge(lines, len(lines), len(lines[0]), TABLE) == Judgement(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "text", "tones", "rhyme"),
    [
        # Old style: it begins 平平 and its third line too, which should be 仄仄 as the second, and 上 for 平.
        ("李白 靜夜思", "牀前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。", 18 / 20, 1.0),
        # Rhymes that are oblique.
        ("孟浩然 春曉", "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。", 13 / 20, 0.0),
        ("柳宗元 江雪", "千山鳥飛絕，萬徑人蹤滅。孤舟蓑笠翁，獨釣寒江雪。", 14 / 20, 0.0),
    ],
)
def test_famous_poems_of_the_old_style_do_not(name: str, text: str, tones: float, rhyme: float) -> None:
    assert judged(text) == Judgement(1.0, pytest.approx(tones), rhyme), name


@pytest.mark.parametrize(
    ("text", "tones", "rhyme"),
    [
        # A word instead of another: 河 平 -> 月 仄, the second place of its line; of 20 rules one.
        (TOWER.replace("河", "月"), 19 / 20, 1.0),
        # The first places of a line are free.
        (TOWER.replace("黃", "白"), 19 / 20, 1.0),  # but 仄平仄仄平 has a lonely level tone
        (TOWER.replace("白日", "黃日"), 1.0, 1.0),
        # 黏: the third line begins as the first one, not as the second: the 4 even places of a couplet.
        ("白日依山盡，黃河入海流。國破山河在，城春草木深。", 16 / 20, 0.0),
        # 對: the lines of a couplet begin alike, 4 even places of 20 rules.
        ("白日依山盡，更上一層樓。欲窮千里目，黃河入海流。", 16 / 20, 1.0),
        # No rhyme: 家 is level as 樓 is, but of another group.
        (TOWER.replace("樓", "家"), 1.0, 0.0),
        # The same rhyme twice is none.
        (TOWER.replace("樓", "流"), 1.0, 0.0),
        # An oblique end where it should be level; 目 and 盡 do not rhyme with anything either.
        (TOWER.replace("流", "目"), 19 / 20, 0.0),
        # Three level tones end the third line, 千里目 -> 千山河: its fourth place and its end are wrong too.
        (TOWER.replace("千里目", "千山河"), 17 / 20, 1.0),
        # Characters that nobody knows keep no rule: of the first line none.
        (TOWER.replace("白日依山盡", "xyzxy"), 15 / 20, 0.5),
    ],
)
def test_each_broken_rule_costs_its_share(text: str, tones: float, rhyme: float) -> None:
    found = judged(text)
    assert found == Judgement(1.0, pytest.approx(tones), rhyme)
    assert found.score == pytest.approx(0.25 + 0.5 * tones + 0.25 * rhyme)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", 0.0),
        ("白日依山盡，黃河入海流。", 2 / 4),
        (TOWER + "白日依山盡。", 4 / 5),
        (TOWER.replace("更上一層樓", "更上層樓"), 3 / 4),
        (TOWER.replace("，", ""), 0.0),
        ("白" * 100, 0.0),
    ],
)
def test_a_poem_of_another_shape_has_no_tones_and_no_rhymes(text: str, shape: float) -> None:
    assert judged(text) == Judgement(shape, 0.0, 0.0)


def test_lines_end_with_any_mark_or_a_new_line() -> None:
    assert judged(TOWER.replace("，", "\n").replace("。", "。\n")).score == 1.0


def test_the_verifier_takes_the_form_from_the_record_or_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "verse", lambda: TABLE)
    record = {"lines": 4, "characters": 5}
    assert poem("", TOWER, record) == 1.0
    assert poem("", TOWER, {}, lines=4, characters=5) == 1.0
    assert poem("", TOWER.replace("河", "月"), record) == pytest.approx(0.975)
    assert poem("", TOWER.replace("河", "月"), record, strict=True) == 0.0
    assert poem("", TOWER, record, strict=True) == 1.0
    with pytest.raises(ValueError, match="`lines` and `characters` are None and None; there are rules for"):
        poem("", TOWER, {})
    with pytest.raises(ValueError, match="are 3 and 5"):
        poem("", TOWER, record, lines=3)
