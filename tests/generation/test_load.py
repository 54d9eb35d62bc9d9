"""`hllm_jax.load`."""

from __future__ import annotations

import pytest

import hllm_jax


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'float16', must be 'float32' or 'bfloat16'"):
        hllm_jax.load("smollm2-135m-instruct", dtype="float16")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no-such-model"):
        hllm_jax.load("no-such-model")


@pytest.mark.slow
def test_a_published_model_knows_the_capital_of_france():
    model = hllm_jax.load("smollm2-135m-instruct")
    said = model.generate("What is the capital of France?", temperature=0, max_tokens=32)[0]
    assert "Paris" in said.text
    assert said.finish_reason == "stop"
    assert said.tokens[-1] in model.tokenizer.stop_ids
    other = "Name three colours."
    many = model.generate(["What is the capital of France?", other], temperature=0, max_tokens=32)
    assert many[0].tokens == said.tokens
    assert many[1].tokens == model.generate(other, temperature=0, max_tokens=32)[0].tokens
    streamed = list(model.stream("What is the capital of France?", temperature=0, max_tokens=32))
    assert "".join(delta.text for delta in streamed) == said.text
