"""What a user of an encoder-decoder sees: greedy, samples, beams, alone and in batches, text and ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import hllm_jax
from hllm_jax.cli import main
from hllm_jax.generation import Seq2SeqModel
from hllm_jax.generation.decode import TRACES
from hllm_jax.generation.load import load_language_model
from hllm_jax.interop import save_hf
from hllm_jax.testing.tokenizer import EOS, SpecialByteTokenizer
from tests.generation.doubles import SEQ2SEQ, encoder_decoder, seq2seq_model, tokenizer

SOURCES = [[70, 71, 2], [80, 2], [*range(90, 117), 2], [33, 44, 55, 66, 77, 2]]


def greedy_reference(source: list[int], count: int) -> tuple[list[int], list[float]]:
    """Argmax after argmax on whole rows, without a cache; and the log-probabilities."""
    model, written, logprobs = seq2seq_model(), [SEQ2SEQ.decoder_start], []
    for _ in range(count):
        logits = np.asarray(model.logits([source], [written])[0, -1], np.float64)
        written.append(int(logits.argmax()))
        logprobs.append(-np.log(np.exp(logits - logits.max()).sum()))
    return written[1:], logprobs


def test_a_ragged_batch_equals_the_model_without_a_cache() -> None:
    said = seq2seq_model().generate(SOURCES, max_tokens=12)
    assert len({tuple(completion.tokens) for completion in said}) == len(SOURCES)
    for source, completion in zip(SOURCES, said, strict=True):
        tokens, logprobs = greedy_reference(source, 12)
        assert completion.tokens == tokens
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=2e-5)
        assert completion.finish_reason == "length"


def test_an_encoder_reads_many_rows_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seq2seq_model().generate(SOURCES, max_tokens=6)
    monkeypatch.setattr("hllm_jax.generation.decode.ENCODE_TOKENS", 64)
    jax.clear_caches()
    assert [c.tokens for c in seq2seq_model().generate(SOURCES, max_tokens=6)] == [c.tokens for c in whole]
    jax.clear_caches()


def test_samples_do_not_depend_on_their_batch() -> None:
    model = seq2seq_model()
    together = model.generate(SOURCES, n=3, seed=[5, 6, 7, 8], temperature=1.0, max_tokens=8)
    alone = [
        completion
        for source, seed in zip(SOURCES, (5, 6, 7, 8), strict=True)
        for completion in model.generate([source], n=3, seed=[seed], temperature=1.0, max_tokens=8)
    ]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert len({tuple(c.tokens) for c in together}) == 12


def test_beams_do_not_depend_on_what_is_searched_beside_them() -> None:
    from hllm_jax.generation.beam import beam_search

    options: dict[str, Any] = {"num_beams": 4, "max_tokens": 8, "n": 3, "length_penalty": 0.5}
    together = beam_search(*encoder_decoder(), tokenizer((100, 101, 102)), SOURCES, **options)
    model = seq2seq_model((100, 101, 102))
    for i, source in enumerate(SOURCES):
        alone = model.generate([source], **options)
        assert [c.tokens for c in together[3 * i : 3 * i + 3]] == [c.tokens for c in alone]
        again = [score.logprobs for score in model.score([source] * 3, [c.tokens for c in alone])]
        for completion, logprobs in zip(alone, again, strict=True):
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=3e-5)


def test_why_it_ends() -> None:
    source = SOURCES[0]
    free = seq2seq_model().generate([source], max_tokens=500)[0]
    assert free.finish_reason == "context"
    assert len(free.tokens) == SEQ2SEQ.max_length - 1
    stop = free.tokens[3]
    ended = seq2seq_model((stop,)).generate([source], max_tokens=500)[0]
    first = free.tokens.index(stop)
    assert (ended.tokens, ended.finish_reason) == (free.tokens[: first + 1], "stop")
    for beams in (1, 3):
        full = seq2seq_model().generate([source], max_tokens=500, num_beams=beams)[0]
        assert (len(full.tokens), full.finish_reason) == (SEQ2SEQ.max_length - 1, "context")


def test_a_source_may_fill_the_encoder() -> None:
    model = seq2seq_model()
    assert len(model.generate([[9] * 64], max_tokens=3)[0].tokens) == 3
    with pytest.raises(ValueError, match="65 tokens, the model's context max_length is 64"):
        model.generate([[9] * 65])


def test_the_repetition_penalty_is_for_what_was_written() -> None:
    """As in `transformers`, whose decoder has never seen the source."""
    plain = seq2seq_model().generate([SOURCES[0]], max_tokens=12)[0].tokens
    penalized = seq2seq_model().generate([SOURCES[0]], max_tokens=12, repetition_penalty=1e9)[0].tokens
    assert len(set(penalized) | {SEQ2SEQ.decoder_start}) == 13 > len(set(plain) | {0})


def test_a_stream_gives_the_text_of_generate() -> None:
    model = seq2seq_model()
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 1.2, "seed": 4}
    whole = model.generate("hi", **options)[0]
    deltas = list(model.stream("hi", **options))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].completion == whole


def test_nothing_is_traced_again_in_the_same_bucket() -> None:
    model = seq2seq_model()
    model.generate(SOURCES, max_tokens=9)
    before = dict(TRACES)
    model.generate([[*source[:-1], 50, 2] for source in SOURCES], max_tokens=20)
    assert dict(TRACES) == before


# ---- text and ids ----


def test_a_text_is_read_with_its_end() -> None:
    model = seq2seq_model()
    assert model.encode("hé") == [*tokenizer().encode("hé"), EOS]
    assert model.generate("hé", max_tokens=4) == model.generate([model.encode("hé")], max_tokens=4)
    framed = Seq2SeqModel(*encoder_decoder(), SpecialByteTokenizer())
    framed.tokenizer.eos_id = framed.tokenizer.sep_id  # type: ignore[union-attr]
    assert framed.encode("a") == framed.tokenizer.encode_for_model("a")[0]  # type: ignore[union-attr]


def test_sentinels_are_text_and_other_special_tokens_are_not() -> None:
    from hllm_jax.testing.corpora import documents
    from hllm_jax.tokenizers.config import TokenizerConfig
    from hllm_jax.tokenizers.train import train_tokenizer

    trained = train_tokenizer(documents(60), TokenizerConfig(vocab_size=400, sentinels=3))
    first, second, _ = trained.sentinel_ids
    said = [first, *trained.encode("for inviting"), second, *trained.encode("last"), trained.eos_id]
    stream = trained.answer_stream()
    text = "".join(stream.push(token) for token in said)
    assert text.replace(" ", "") == "<extra_id_0>forinviting<extra_id_1>last"
    assert "extra_id" not in trained.decode(said, skip_special=True)


def test_without_a_tokenizer_it_takes_and_gives_ids() -> None:
    model = seq2seq_model(with_tokenizer=False)
    said = model.generate(SOURCES[:2], max_tokens=5)
    assert [c.tokens for c in said] == [
        c.tokens for c in seq2seq_model((2,)).generate(SOURCES[:2], max_tokens=5)
    ]
    assert {c.text for c in said} == {""}
    for call in (lambda: model.generate("hi"), lambda: model.score("hi", "ho")):
        with pytest.raises(ValueError, match="no tokenizer: give token ids"):
            call()
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        model.generate(SOURCES, stop="x")


# ---- logits and scores ----


def test_logits_of_padded_rows_are_those_of_the_rows_alone() -> None:
    model, source, target = seq2seq_model(), list(range(40, 50)), [0, 60, 61]
    alone = np.asarray(model.logits([source], [target])[0])
    assert (alone.shape, alone.dtype) == ((3, 261), np.float32)
    for left, right in ((0, 5), (5, 0), (3, 4)):
        padded = [[0] * left + source + [0] * right, [9] * (10 + left + right)]
        segments = [[0] * left + [1] * 10 + [0] * right, [1] * (10 + left + right)]
        logits = model.logits(
            padded, [[*target, 7, 7], [0, 9, 9, 9, 9]], segments, [[1] * 3 + [0] * 2, [1] * 5]
        )
        np.testing.assert_allclose(logits[0, :3], alone, atol=2e-5)


def test_scores_are_the_logprobs_of_the_logits_and_of_completions() -> None:
    model = seq2seq_model((2,))
    texts, answers = ["hello", "a much longer source, of another bucket than the first"], ["ho", "你好"]
    for text, answer, score in zip(texts, answers, model.score(texts, answers), strict=True):
        target = [*tokenizer().encode(answer), EOS]
        logits = model.logits([model.encode(text)], [[SEQ2SEQ.decoder_start, *target[:-1]]])
        logprobs = np.asarray(jax.nn.log_softmax(logits[0]))[np.arange(len(target)), target]
        assert score.tokens == target
        np.testing.assert_allclose(score.logprobs, logprobs, atol=2e-5)
    said = model.generate("hello", max_tokens=6)[0]
    np.testing.assert_allclose(model.score("hello", said.tokens)[0].logprobs, said.logprobs, atol=2e-5)
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        model.score(texts, "ho")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.logits([[261]], [[0]]), "outside the vocabulary"),
        (lambda m: m.logits([[5]], [[0] * 65]), "longer than the model's max_length 64"),
        (lambda m: m.logits([[5]], [[0], [0]]), "1 rows of tokens and 2 of decoder_tokens"),
        (lambda m: m.logits([[5, 6]], [[0]], [[1]]), "shape of tokens"),
        (lambda m: m.generate([{"role": "user", "content": "hi"}]), "holds no conversation"),
        (lambda m: m.generate([[300]]), "token 300 is outside"),
        (lambda m: m.generate("x", num_beams=2, n=3), "at most num_beams = 2"),
        (lambda m: m.generate("x", num_beams=2, temperature=1.0), "does not sample"),
        (lambda m: m.generate("x", num_beams=2, stop="y"), "stop tokens only"),
        (lambda m: m.generate([]), "no prompt was given"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(seq2seq_model())


# ---- load, and the commands ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model as a Hugging Face folder without a tokenizer."""
    config = dataclasses.replace(SEQ2SEQ, stop_ids=(5, 7))
    save_hf(tmp_path, config, jax.tree.map(np.asarray, encoder_decoder()[1]["params"]))
    return tmp_path


def test_a_folder_without_a_tokenizer_loads(folder: Path) -> None:
    model = hllm_jax.load(folder)
    assert isinstance(model, Seq2SeqModel)
    assert model.tokenizer is None
    assert model.engine.vocabulary.stop_ids == (5, 7)
    said = model.generate(SOURCES, max_tokens=6)
    free = seq2seq_model((5, 7)).generate(SOURCES, max_tokens=6)
    assert [c.tokens for c in said] == [c.tokens for c in free]
    with pytest.raises(ValueError, match="only a decoder goes on with a text"):
        load_language_model(folder)


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": [70, 71, 2]}\n')
    assert main(["generate", str(folder), "--prompts", str(prompts), "--max-tokens", "6"]) == 0
    wanted = hllm_jax.load(folder).generate([[70, 71, 2]], max_tokens=6)[0].tokens
    assert capsys.readouterr().out.strip() == str(wanted)
    for command, message in (
        (["generate", "--prompt", "hi"], "no tokenizer: give token ids"),
        (["generate", "--prompt", "hi", "--raw"], "an encoder-decoder has none"),
        (["chat"], "only a decoder goes on with a text or a conversation; `hllm generate`"),
    ):
        assert main([command[0], str(folder), *command[1:]]) == 2
        assert message in capsys.readouterr().err
