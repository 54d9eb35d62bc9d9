"""What stands around a text: read from post-processors, written by them, refused where it is not known."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.tokenizers import Frame, TokenizerError

IDS = {"[CLS]": 101, "[SEP]": 102}
BERT = Frame.of("[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1", IDS)


def test_bert_and_roberta() -> None:
    """The two examples of the papers' code: `[CLS] a [SEP] b [SEP]` and `<s> a </s></s> b </s>`."""
    assert BERT([7, 8], None) == ([101, 7, 8, 102], [0, 0, 0, 0])
    assert BERT([7, 8], [9]) == ([101, 7, 8, 102, 9, 102], [0, 0, 0, 0, 1, 1])
    assert BERT([], []) == ([101, 102, 102], [0, 0, 1])
    old = {"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]}
    assert Frame.of_post_processor(old) == BERT
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    frame = Frame.of_post_processor(roberta)
    assert frame([7], [9]) == ([0, 7, 2, 2, 9, 2], [0] * 6)
    assert (frame.begins_with, frame.ids) == (0, {0, 2})


def test_written_and_read_again() -> None:
    names = {101: "[CLS]", 102: "[SEP]"}
    assert Frame.of_post_processor(BERT.post_processor(names)) == BERT
    assert Frame.from_json(BERT.to_json()) == BERT
    byte_level = {"type": "ByteLevel", "add_prefix_space": True}
    both = {"type": "Sequence", "processors": [byte_level, BERT.post_processor(names)]}
    assert Frame.of_post_processor(both) == BERT


def test_plain() -> None:
    assert Frame.of_post_processor(None) == Frame.of_post_processor({"type": "ByteLevel"}) == Frame.plain()
    assert Frame.plain()([5], None) == ([5], [0])
    assert Frame.plain()([5], [6]) == ([5, 6], [0, 1])
    assert Frame.plain(1, 2)([5], [6]) == ([1, 5, 2, 1, 6, 2], [0, 0, 0, 1, 1, 1])
    assert Frame.plain().begins_with is None


def test_a_name_may_stand_for_several_ids() -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "begin", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"begin": {"id": "begin", "ids": [3, 4], "tokens": ["x", "y"]}},
    }
    assert Frame.of_post_processor(processor)([5], None) == ([3, 4, 5], [0, 0, 0])


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            {"type": "Magic"},
            r"post-processor \['Magic'\] .* known is ByteLevel with one of TemplateProcessing",
        ),
        ({"type": "Sequence", "processors": [BERT.post_processor({101: "a", 102: "b"})] * 2}, "is not known"),
        (
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "begin", "type_id": 0}}],
                "pair": [],
            },
            "writes 'begin', whose ids it does not say",
        ),
    ],
)
def test_what_is_not_known(processor: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Frame.of_post_processor(processor)
