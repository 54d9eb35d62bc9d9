"""XLM-R's folders without a tokenizer.json: SentencePiece's pieces under fairseq's ids."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
import sentencepiece

from hllm_jax.testing import documents
from hllm_jax.tokenizers import TokenizerError, load_tokenizer
from tests.tokenizers import published

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
TEXTS = [
    "The king of Scotland, 1,234.5!",
    "春风吹又生。你好，世界",
    "def f(x): return x  # 😀",
    "  two  spaces\tand a tab ",
    "",
]


def folder_of(path: Path, vocab_size: int = 400, **changes: int) -> Path:
    """With a model of SentencePiece that is trained here, and a config.json that says whose it is."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*documents(200), *TEXTS[:3]]),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **changes,
    )
    path.mkdir()
    (path / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    (path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    return path


def test_ids_are_sentencepiece_s_and_one_more(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    tokenizer = load_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    texts = [*TEXTS, "wörd unknown 龘"]
    assert any(model.unk_id() in model.encode(text) for text in texts)
    for text in texts:
        # Fairseq's <unk> is 3, SentencePiece's 0; its <s> and </s>, 1 and 2, are never in a text.
        ids = [3 if i == 0 else i + 1 for i in model.encode(text)]
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode_for_model(text)[0] == [0, *ids, 2]
    first, second = (tokenizer.encode(text) for text in TEXTS[:2])
    assert tokenizer.encode_for_model(*TEXTS[:2])[0] == [0, *first, 2, 2, *second, 2]
    roles = [getattr(tokenizer, f"{role}_id") for role in ("bos", "pad", "eos", "unk", "cls", "sep", "mask")]
    assert roles == [0, 1, 2, 3, 0, 2, model.vocab_size() + 1]
    assert tokenizer.vocab_size == model.vocab_size() + 2  # as 250,002 of 250,000 pieces
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode_batch(texts) == tokenizer.encode_batch(texts)


def test_a_model_with_other_beginnings_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    with pytest.raises(TokenizerError, match=r"folder: sentencepiece\.bpe\.model must .* '<pad>', '<unk>'"):
        load_tokenizer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(TokenizerError, match=r"sentencepiece\.bpe\.model is of a class that neither it nor"):
        load_tokenizer(folder)


PROGRAM = """
import json, sys
from transformers import XLMRobertaTokenizer
folder, texts = json.load(sys.stdin)
tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
print(json.dumps([
    [tokenizer(text)["input_ids"] for text in texts],
    [tokenizer(*pair)["input_ids"] for pair in zip(texts, texts[1:])],
    [len(tokenizer), tokenizer.pad_token_id, tokenizer.mask_token_id],
]))
"""


@pytest.mark.peers
def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    tokenizer = load_tokenizer(folder)
    # An empty second text is none to `transformers`.
    texts = [*filter(None, [*TEXTS, *published.read("t5").texts])]
    assert len(texts) > 120
    done = subprocess.run(
        [str(PEERS), "-c", PROGRAM],
        input=json.dumps([str(folder), texts]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    single, pairs, named = json.loads(done.stdout)
    for text, theirs in zip(texts, single, strict=True):
        assert tokenizer.encode_for_model(text)[0] == theirs, text
    for first, second, theirs in zip(texts, texts[1:], pairs, strict=False):
        assert tokenizer.encode_for_model(first, second)[0] == theirs, (first, second)
    assert [tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id] == named
