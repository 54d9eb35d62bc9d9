"""What a model writes beside its training."""

from __future__ import annotations

import numpy as np

from hllm_jax.generation import LanguageModel, sample_writer
from hllm_jax.models.config import Execution
from hllm_jax.parallel.state import TrainState
from hllm_jax.testing import ByteTokenizer
from hllm_jax.testing.models import draw_params, tiny_config
from hllm_jax.training.config import SampleConfig


def test_it_is_what_the_model_of_the_state_says() -> None:
    spec, tokenizer = tiny_config(vocab_size=ByteTokenizer().vocab_size), ByteTokenizer()
    model, params = spec.build(Execution(dtype="float32")), draw_params(spec)
    teacher = {"teacher": {"params": draw_params(spec, seed=1)}}
    zero = np.zeros((), np.int32)
    state = TrainState(step=zero, trainable={"params": params}, frozen=teacher, opt_state=(), rng=zero)
    samples = SampleConfig(prompts=("ab", "你好"), max_tokens=4, temperature=0.0)
    write = sample_writer(model, tokenizer, samples, raw=True, of=lambda tree: {"params": tree["params"]})
    said = LanguageModel(model, {"params": params}, tokenizer).generate(
        ["ab", "你好"], max_tokens=4, temperature=0.0, raw=True
    )
    assert write(state) == [
        {"prompt": "ab", "text": said[0].text},
        {"prompt": "你好", "text": said[1].text},
    ]
