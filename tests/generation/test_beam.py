"""Beam search against all sequences, and against itself."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from hllm_jax.generation.beam import beam_search
from hllm_jax.generation.request import Request, Sampling
from tests.generation.doubles import TINY, decoder, engine, language_model, tokenizer

FEW = dataclasses.replace(TINY, vocab_size=6, max_length=16)
STOP = 2


def few_tokenizer():
    double = tokenizer((STOP,))
    double.vocab_size = 6
    return double


def all_sequences(prompt, count, length_penalty):
    """Every continuation of at most `count` tokens that ends in the stop token or is full, best first."""
    rows = list(itertools.product(range(6), repeat=count))
    logits = np.asarray(
        language_model(config=FEW).logits([[*prompt, *tokens] for tokens in rows]), np.float64
    )
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = {}
    for row, tokens in zip(logprobs, rows, strict=True):
        end = tokens.index(STOP) + 1 if STOP in tokens else count
        total = sum(row[len(prompt) - 1 + i, t] for i, t in enumerate(tokens[:end]))
        found[tokens[:end]] = total / end**length_penalty
    return sorted(((score, tokens) for tokens, score in found.items()), reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0, 2.0])
def test_with_enough_beams_it_finds_the_best_of_all_sequences(length_penalty):
    prompt = [1, 3]
    expected = all_sequences(prompt, 3, length_penalty)
    found = beam_search(
        *decoder(FEW),
        few_tokenizer(),
        [prompt],
        num_beams=130,
        max_tokens=3,
        length_penalty=length_penalty,
        n=5,
    )
    assert [tuple(completion.tokens) for completion in found] == [tokens for _, tokens in expected[:5]]
    for completion, (score, tokens) in zip(found, expected, strict=False):
        np.testing.assert_allclose(sum(completion.logprobs) / len(tokens) ** length_penalty, score, atol=1e-4)
        assert completion.finish_reason == ("stop" if tokens[-1] == STOP else "length")


def test_one_beam_is_greedy():
    prompt = (1, 70, 71)
    greedy = engine().run([Request(tokens=prompt, max_tokens=12, sampling=Sampling(temperature=0.0))])[0]
    found = beam_search(*decoder(), tokenizer(), [prompt], num_beams=1, max_tokens=12)[0]
    assert found.tokens == greedy.tokens
    assert found.text == greedy.text
    np.testing.assert_allclose(found.logprobs, greedy.logprobs, atol=1e-5)


def test_prompts_searched_together_do_not_mix():
    prompts = [[1, 70, 71], [1, *range(80, 100)]]
    together = beam_search(
        *decoder(), tokenizer(), prompts, num_beams=6, max_tokens=8, n=2, length_penalty=0.0
    )
    for i, prompt in enumerate(prompts):
        alone = beam_search(
            *decoder(), tokenizer(), [prompt], num_beams=6, max_tokens=8, n=2, length_penalty=0.0
        )
        assert [c.tokens for c in together[2 * i : 2 * i + 2]] == [c.tokens for c in alone]
        assert sum(alone[0].logprobs) >= sum(alone[1].logprobs)


def test_the_context_ends_beams_too():
    found = beam_search(*decoder(FEW), few_tokenizer(), [[1, 3, 4, 5] * 3], num_beams=3, max_tokens=40, n=3)
    for completion in found:
        assert len(completion.tokens) <= 4
        assert completion.finish_reason == ("stop" if completion.tokens[-1] == STOP else "context")


def test_generate_takes_beams_and_refuses_what_they_cannot_do():
    model = language_model()
    best = model.generate("ab", num_beams=4, n=2, max_tokens=5)
    assert len(best) == 2
    assert model.generate("ab", num_beams=4, temperature=0, top_k=None, max_tokens=5) == best[:1]
    for wrong in ({"temperature": 0.5}, {"top_p": 0.5}, {"stop": "x"}, {"n": 5}, {"num_beams": 0}):
        with pytest.raises(ValueError):
            model.generate("ab", **{"num_beams": 4, **wrong})
