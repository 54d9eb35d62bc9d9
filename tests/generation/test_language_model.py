"""What a user of `hllm_jax.load` sees."""

from __future__ import annotations

import numpy as np
import pytest

from tests.generation.doubles import TINY, language_model, tokenizer


def test_a_text_is_a_message_unless_raw():
    model = language_model()
    chat = tokenizer().render([{"role": "user", "content": "hi"}], add_generation_prompt=True)[0]
    assert model.generate("hi", max_tokens=4, temperature=0) == model.generate(
        [chat], max_tokens=4, temperature=0
    )
    raw = model.generate("hi", raw=True, max_tokens=4, temperature=0)
    assert raw == model.generate(tokenizer().encode_prompt("hi"), max_tokens=4, temperature=0)


def test_without_a_template_a_text_is_a_text():
    model = language_model()
    model.tokenizer.chat_template = None
    assert model.generate("hi", max_tokens=4) == model.generate("hi", raw=True, max_tokens=4)


def test_one_or_many_texts_and_conversations():
    model = language_model()
    conversation = [{"role": "user", "content": "hi"}]
    one = model.generate(conversation, max_tokens=4, temperature=0)
    assert len(one) == 1
    assert model.generate("hi", max_tokens=4, temperature=0) == one
    many = model.generate([conversation, "yo", "hi"], max_tokens=4, temperature=0)
    assert [c.tokens for c in many[::2]] == [one[0].tokens] * 2
    assert len(model.generate(["a", "b"], n=3, max_tokens=2)) == 6


def test_seeds():
    model = language_model()
    twice = [model.generate(["a", "a", "b"], seed=5, max_tokens=8, temperature=1) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0][0].tokens != twice[0][1].tokens
    own = model.generate(["a", "b"], seed=[1, 2], max_tokens=8, temperature=1)
    assert own[1].tokens == model.generate("b", seed=2, max_tokens=8, temperature=1)[0].tokens
    with pytest.raises(ValueError, match="3 seeds for 2 prompts"):
        model.generate(["a", "b"], seed=[1, 2, 3])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ({"role": "user", "content": "hi"}, "list of messages"),
        (7, "list of messages"),
        ([{"role": "user", "content": "hi"}, "x"], "."),
        (["fine", 3], "prompt 1 must be"),
        (["fine", []], "prompt 1 is empty"),
        ([[]], "prompt 0 is empty"),
        ([[1, 2, 300]], "token 300 is outside"),
    ],
)
def test_wrong_prompts_are_refused(prompts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        language_model().generate(prompts)


def test_an_empty_raw_prompt_without_bos_is_refused():
    model = language_model()
    model.tokenizer.encode_prompt = model.tokenizer.encode
    with pytest.raises(ValueError, match="no tokens"):
        model.generate("", raw=True)
    with pytest.raises(ValueError, match=r"prompt 1: .*no tokens"):
        model.generate(["a", ""], raw=True)


def test_an_empty_message_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        language_model().generate("", max_tokens=1)


def test_raw_takes_no_messages():
    with pytest.raises(ValueError, match="raw=True continues a text"):
        language_model().generate([{"role": "user", "content": "hi"}], raw=True)


def test_a_stream_gives_the_text_of_generate():
    model = language_model()
    whole = model.generate("hi", max_tokens=20, temperature=1.2, seed=4)[0]
    deltas = list(model.stream("hi", max_tokens=20, temperature=1.2, seed=4))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].completion == whole


def test_logits_of_a_padded_row_are_those_of_the_row_alone_on_both_sides():
    model, row = language_model(), list(range(40, 50))
    alone = np.asarray(model.logits([row])[0])
    for left, right in ((0, 5), (5, 0), (3, 4)):
        padded = np.asarray([[0] * left + row + [0] * right, [9] * (left + 10 + right)])
        segments = np.asarray([[0] * left + [1] * 10 + [0] * right, [1] * (left + 10 + right)])
        logits = np.asarray(model.logits(padded, segments))
        np.testing.assert_allclose(logits[0, left : left + 10], alone, atol=2e-5)
    assert alone.shape == (10, 261)
    assert alone.dtype == np.float32


def test_a_later_token_leaves_earlier_logits_bit_equal():
    model, row = language_model(), list(range(40, 60))
    changed = [*row[:12], 200, *row[13:]]
    a, b = (np.asarray(model.logits([tokens])[0]) for tokens in (row, changed))
    assert (a[:12] == b[:12]).all()
    assert (a[12:] != b[12:]).any()


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        ([[261]], {}, "outside the vocabulary"),
        ([[-1]], {}, "outside the vocabulary"),
        ([[5] * 65], {}, "65 tokens is longer than the model's max_length 64"),
        ([[5, 6]], {"positions": [[0, 64]]}, "positions must run from 0 to max_length - 1 = 63"),
        ([[5, 6]], {"segment_ids": [[1]]}, "shape of tokens"),
        ([5, 6], {}, r"integers \[B, L\]"),
        ([[0.5]], {}, r"integers \[B, L\]"),
        ([[5], [6, 7]], {}, r"integers \[B, L\], and these rows differ in length"),
    ],
)
def test_logits_refuse_what_jax_would_clamp(tokens, more, message):
    with pytest.raises(ValueError, match=message):
        language_model().logits(tokens, **more)


def test_scores_are_the_logprobs_of_the_logits_and_of_completions():
    model = language_model()
    texts = ["hello", "a much longer text, of another bucket than the first", "x"]
    scores = model.score(texts)
    for text, score in zip(texts, scores, strict=True):
        row = tokenizer().encode_prompt(text)
        logits = np.asarray(model.logits([row])[0], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert score.tokens == row[1:]
        np.testing.assert_allclose(score.logprobs, logprobs[np.arange(len(row) - 1), row[1:]], atol=2e-5)
        np.testing.assert_allclose(score.total, sum(score.logprobs), atol=1e-4)
    assert model.score("hello")[0].tokens == scores[0].tokens
    said = model.generate("he", raw=True, max_tokens=6, temperature=0)[0]
    from hllm_jax.generation.scoring import score_tokens

    again = score_tokens(model.model, model.variables, [[*tokenizer().encode_prompt("he"), *said.tokens]])[0]
    np.testing.assert_allclose(again.logprobs[-6:], said.logprobs, atol=2e-5)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="text 1 has 1 tokens"):
        language_model().score(["ok", ""])
    with pytest.raises(ValueError, match="max_length is 64"):
        language_model().score("x" * TINY.max_length)
