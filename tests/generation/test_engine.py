"""Prefill and decode against the model without a cache, alone and in batches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.generation.decode import TRACES, bucket, prefill
from hllm_jax.generation.request import Request, Sampling
from hllm_jax.testing.models import compiled
from tests.generation.doubles import TINY, decoder, engine, language_model, tokenizer

GREEDY = Sampling(temperature=0.0)
PROMPTS = [(1, 70, 71), (1, 80), (1, *range(90, 117)), (1, 33, 44, 55, 66, 77)]


def greedy_reference(prompt, count):
    """Argmax after argmax on the whole row, without a cache; and the log-probabilities."""
    model, tokens, logprobs = language_model(), list(prompt), []
    for _ in range(count):
        logits = np.asarray(model.logits([tokens])[0, -1], np.float64)
        tokens.append(int(logits.argmax()))
        logprobs.append(logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return tokens[len(prompt) :], logprobs


def test_a_ragged_batch_equals_the_model_without_a_cache():
    requests = [Request(tokens=prompt, max_tokens=20, sampling=GREEDY) for prompt in PROMPTS]
    for prompt, completion in zip(PROMPTS, engine().run(requests), strict=True):
        tokens, logprobs = greedy_reference(prompt, 20)
        assert completion.tokens == tokens
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=2e-5)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    "config", [TINY, dataclasses.replace(TINY, attention_pattern=("window", "full"), window=4)]
)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_logits_equal_uncached_at_every_step_past_the_window(config, scan_layers):
    model, variables = decoder(config, scan_layers)
    tokens = np.random.default_rng(0).integers(5, 261, (3, 24)).astype(np.int32)
    whole, _ = compiled(model)(variables, tokens)
    lengths = np.array([3, 9, 1], np.int32)
    logits, cache, seen = prefill(model, variables, jnp.asarray(tokens), jnp.asarray(lengths), 261)
    np.testing.assert_allclose(logits, np.asarray(whole)[np.arange(3), lengths - 1], atol=2e-5)
    assert [set(np.flatnonzero(row)) for row in np.asarray(seen)] == [
        set(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)
    ]
    for step in range(14):
        at = lengths + step
        fed = tokens[np.arange(3), at][:, None]
        logits, cache = compiled(model)(variables, fed, cache=cache)
        np.testing.assert_allclose(logits[:, 0], np.asarray(whole)[np.arange(3), at], atol=2e-5)
    assert cache.lengths.tolist() == (lengths + 14).tolist()


def test_a_long_prompt_is_read_in_stretches(monkeypatch):
    import hllm_jax.generation.decode as decode

    model, variables = decoder()
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, 261, (2, 48)), jnp.int32)
    lengths = jnp.array([48, 17], jnp.int32)
    whole = prefill(model, variables, tokens, lengths, 261)
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 16)
    # Another function, so that it is traced anew.
    in_stretches = jax.jit(functools.partial(prefill.__wrapped__, model), static_argnums=3)
    parts = in_stretches(variables, tokens, lengths, 261)
    np.testing.assert_allclose(parts[0], whole[0], atol=2e-5)
    assert parts[1].lengths.tolist() == [48, 17]


def test_a_sample_depends_on_seed_and_row_and_not_on_its_batch():
    asked = [
        Request(tokens=prompt, max_tokens=12, sampling=Sampling(temperature=1.0), seed=7, row=row)
        for row, prompt in enumerate(PROMPTS)
    ]
    together = engine().run(asked)
    assert together == engine().run(asked)
    for request, completion in zip(asked, together, strict=True):
        assert engine().run([request])[0].tokens == completion.tokens
    assert [c.tokens for c in engine(batch_size=2).run(asked)] == [c.tokens for c in together]
    other = engine().run([dataclasses.replace(request, seed=8) for request in asked])
    assert all(a.tokens != b.tokens for a, b in zip(together, other, strict=True))


def test_many_samples_of_one_prompt_differ_from_the_first_token_on():
    completions = engine().run([Request(tokens=PROMPTS[0], max_tokens=2, n=64)])
    assert len({completion.tokens[0] for completion in completions}) > 8
    assert len({tuple(completion.tokens) for completion in completions}) > 32


def test_samples_share_one_prefill_and_equal_samples_asked_for_alone():
    before = TRACES["prefill"]
    three = engine().run([Request(tokens=PROMPTS[1], max_tokens=6, n=3, seed=3)])
    assert TRACES["prefill"] <= before + 1
    two = engine().run([Request(tokens=PROMPTS[1], max_tokens=6, n=2, seed=3)])
    assert two == three[:2]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40])
def test_exactly_max_tokens(count):
    completion = engine().run([Request(tokens=(1, 70), max_tokens=count, sampling=GREEDY)])[0]
    assert len(completion.tokens) == len(completion.logprobs) == count
    assert completion.finish_reason == "length"


def test_rows_of_one_batch_end_each_at_its_own_limit():
    requests = [Request(tokens=(1, 70), max_tokens=n, sampling=GREEDY) for n in (1, 9, 4)]
    completions = engine().run(requests)
    assert [len(completion.tokens) for completion in completions] == [1, 9, 4]
    assert completions[0].tokens == completions[1].tokens[:1]


def test_a_full_context_is_a_reason_and_no_clamp():
    prompt = tuple(range(5, 65))
    completion = engine().run([Request(tokens=prompt, max_tokens=50, sampling=GREEDY)])[0]
    assert len(completion.tokens) == TINY.max_length - len(prompt)
    assert completion.finish_reason == "context"
    assert completion.tokens == greedy_reference(prompt, 4)[0]
    full = engine().run([Request(tokens=tuple(range(5, 69)), max_tokens=5)])[0]
    assert (full.tokens, full.text, full.finish_reason) == ([], "", "context")
    with pytest.raises(ValueError, match=r"65 tokens.*max_length is 64"):
        engine().run([Request(tokens=tuple(range(5, 70)))])


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token 261 is outside the vocabulary"):
        engine().run([Request(tokens=(1, 261))])


def test_a_stop_id_ends_its_row_and_leaves_the_others_alone():
    free = engine().run([Request(tokens=prompt, max_tokens=20, sampling=GREEDY) for prompt in PROMPTS])
    stop = free[0].tokens[5]
    first = free[0].tokens.index(stop)
    asked = [Request(tokens=prompt, max_tokens=20, sampling=GREEDY) for prompt in PROMPTS]
    for alone, completion in zip(free, engine((stop,)).run(asked), strict=True):
        end = alone.tokens.index(stop) + 1 if stop in alone.tokens else 20
        assert completion.tokens == alone.tokens[:end]
        assert completion.logprobs == alone.logprobs[:end]
        assert completion.finish_reason == ("stop" if end < 20 or stop in alone.tokens else "length")
        said = completion.tokens[:-1] if completion.finish_reason == "stop" else completion.tokens
        decoded = tokenizer().decode(said, skip_special=True)
        assert completion.text in (decoded, decoded.removesuffix("\ufffd"))
    assert first < 19


def test_a_finished_row_does_not_change_while_others_go_on():
    short = Request(tokens=PROMPTS[0], max_tokens=3, sampling=GREEDY)
    long = Request(tokens=PROMPTS[1], max_tokens=40, sampling=GREEDY)
    alone = engine().run([short])[0]
    assert engine().run([short, long])[0].tokens == alone.tokens


def test_ids_that_the_tokenizer_lacks_are_never_sampled():
    few = engine()
    few.vocabulary.vocab_size = 40
    completions = few.run([Request(tokens=(1, 20), max_tokens=8, n=16, sampling=Sampling(temperature=5.0))])
    assert max(max(completion.tokens) for completion in completions) < 40


def test_the_penalty_makes_repetition_rare():
    plain, penalized = engine().run(
        [
            Request(tokens=PROMPTS[0], max_tokens=30, sampling=GREEDY),
            Request(
                tokens=PROMPTS[0], max_tokens=30, sampling=Sampling(temperature=0.0, repetition_penalty=1e3)
            ),
        ]
    )
    assert len(set(penalized.tokens)) == 30 > len(set(plain.tokens))


def test_the_same_shapes_are_traced_once():
    runner = engine()
    asked = Request(tokens=PROMPTS[0], max_tokens=30, sampling=GREEDY)
    runner.run([asked])
    before = dict(TRACES)
    runner.run([dataclasses.replace(asked, tokens=(1, *range(40, 60)), max_tokens=11)])
    runner.run([dataclasses.replace(asked, sampling=Sampling(temperature=0.5, top_k=3), stop=("zz",))])
    list(runner.stream([asked]))
    assert dict(TRACES) == before


def test_a_stream_is_the_completion_in_pieces():
    asked = [
        Request(tokens=prompt, max_tokens=33, sampling=Sampling(temperature=1.5), row=row)
        for row, prompt in enumerate(PROMPTS)
    ]
    whole = engine().run(asked)
    texts, ended = [""] * len(asked), {}
    for delta in engine(chunk=3).stream(asked):
        assert delta.index not in ended
        texts[delta.index] += delta.text
        if delta.completion is not None:
            ended[delta.index] = delta.completion
    assert [ended[i] for i in range(len(asked))] == whole
    assert texts == [completion.text for completion in whole]
    for completion in whole:
        # All but the beginning of a character that the limit cut off.
        decoded = tokenizer().decode(completion.tokens, skip_special=True)
        assert completion.text in (decoded, decoded.removesuffix("\ufffd"))


def test_stop_strings_end_a_completion_across_tokens():
    runner, streamer = engine(), engine(chunk=2)
    runner.vocabulary.vocab_size = streamer.vocabulary.vocab_size = 5 + 128  # ASCII: a character a token
    free = runner.run([Request(tokens=PROMPTS[2], max_tokens=30, sampling=GREEDY)])[0]
    stop = free.text[6:9]
    at = free.text.index(stop)
    asked = Request(tokens=PROMPTS[2], max_tokens=30, sampling=GREEDY, stop=("not there", stop))
    stopped = runner.run([asked])[0]
    assert stopped.text == free.text[:at]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert stop in tokenizer().decode(stopped.tokens, skip_special=True)
    assert stop not in tokenizer().decode(stopped.tokens[:-1], skip_special=True)
    assert "".join(delta.text for delta in streamer.stream([asked])) == stopped.text


def test_a_request_is_checked_at_the_call_of_a_stream():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        engine().stream([Request(tokens=(999,))])


def test_buckets_are_few_and_never_beyond_the_context():
    assert [bucket(n, 512) for n in (1, 32, 33, 48, 49, 65, 97, 200, 300, 400)] == [
        32, 32, 48, 48, 64, 96, 128, 256, 384, 512,
    ]  # fmt: skip
    assert bucket(300, 320) == 320
