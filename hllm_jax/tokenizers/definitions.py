"""The content of a `tokenizer.json`, built from what others have instead of it."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.spelling import SPACE

Content = dict[str, Any]

# How byte-level models cut a text into words before they merge bytes.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# A score that no path through a text can afford: SentencePiece finds neither control nor byte pieces in a
# text, while the `tokenizers` library looks for every entry of its vocabulary.
HIDDEN = -1e6


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """An entry that is found, or written by a template, before the text around it is cut into words."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def definition(
    model: Content,
    *,
    added: Iterable[AddedToken],
    normalizer: Sequence[Content] = (),
    pre_tokenizer: Sequence[Content] = (),
    decoder: Sequence[Content] = (),
    frame: Frame | None = None,
) -> Content:
    """A whole tokenizer.json; each part is a list of steps.

    Args:
        model: its `model`.
        added: its `added_tokens`.
        normalizer, pre_tokenizer, decoder: steps, none, one or several.
        frame: becomes its post-processor; all its ids must be among `added`.
    """
    tokens = sorted(added, key=lambda token: token.id)
    names = {token.id: token.content for token in tokens}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dataclasses.asdict(token) for token in tokens],
        "normalizer": _steps(normalizer, "normalizers"),
        "pre_tokenizer": _steps(pre_tokenizer, "pretokenizers"),
        "post_processor": frame.post_processor(names) if frame and frame != Frame.plain() else None,
        "decoder": _steps(decoder, "decoders"),
        "model": model,
    }


def _steps(steps: Sequence[Content], inside: str) -> Content | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", inside: list(steps)}


def bert_normalizer(lowercase: bool, strip_accents: bool | None, chinese: bool = True) -> Content:
    """BERT's: control characters out, Chinese characters apart, perhaps lower case without accents."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }


def wordpiece(vocabulary: Mapping[str, int], unknown: str, normalizer: Content, **parts: Any) -> Content:
    """WordPiece as BERT has it: words at blanks and punctuation, `##` on what continues one."""
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocabulary),
    }
    return definition(
        model,
        normalizer=[normalizer],
        pre_tokenizer=[{"type": "BertPreTokenizer"}],
        decoder=[{"type": "WordPiece", "prefix": "##", "cleanup": True}],
        **parts,
    )


def byte_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    *,
    patterns: Sequence[str] = (),
    add_prefix_space: bool = False,
    whole: bool = False,
    **parts: Any,
) -> Content:
    """Byte-level BPE.

    Args:
        vocabulary: entries in GPT-2's spelling.
        merges: pairs of entries, best first.
        patterns: regular expressions that cut a text one after the other, matches and what is between them;
            none is GPT-2's own expression.
        add_prefix_space: a text that does not begin with a blank gets a space.
        whole: a word that is an entry becomes it without regard to the merges.
        **parts: of `definition`.
    """
    return definition(
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
        pre_tokenizer=[*map(split, patterns), byte_level(add_prefix_space, use_regex=not patterns)],
        decoder=[byte_level(add_prefix_space, use_regex=not patterns)],
        **parts,
    )


def split(pattern: str) -> Content:
    """Cut at the matches of an expression and keep everything."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(add_prefix_space: bool, use_regex: bool) -> Content:
    """The step that spells bytes, and perhaps cuts by GPT-2's expression first."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def word_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], unknown: str, **parts: Any
) -> Content:
    """GPT-1's BPE over the characters of lower-case words, `</w>` on what ends one."""
    return definition(
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
        normalizer=[bert_normalizer(lowercase=True, strip_accents=None)],
        pre_tokenizer=[{"type": "BertPreTokenizer"}],
        decoder=[{"type": "BPEDecoder", "suffix": "</w>"}],
        **parts,
    )


def unigram(
    pieces: Sequence[tuple[str, float]],
    unknown: int,
    *,
    charsmap: bytes = b"",
    before: Sequence[Content] = (),
    **parts: Any,
) -> Content:
    """Unigram as T5 and ALBERT have it: words at blanks, each with U+2581 before it.

    Args:
        pieces: entry and log probability by id.
        unknown: the id for what has no entry.
        charsmap: SentencePiece's compiled normalisation table.
        before: normalising steps before the table.
        **parts: of `definition`.
    """
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    return definition(
        {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[text, score] for text, score in pieces],
            "byte_fallback": False,
        },
        normalizer=[*before, *([precompiled(charsmap)] if charsmap else [])],
        pre_tokenizer=[{"type": "WhitespaceSplit"}, metaspace],
        decoder=[metaspace],
        **parts,
    )


def precompiled(charsmap: bytes) -> Content:
    """SentencePiece's normalisation by a compiled table."""
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


def added_tokens(config: Mapping[str, Any], older: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """The tokens that a folder adds to its vocabulary files.

    Args:
        config: tokenizer_config.json, with `{"added_tokens_decoder": {id: {"content": …}}}` or without.
        older: added_tokens.json, `{text: id}`, which older folders have instead.
    """
    listed: Mapping[str, Any] = config.get("added_tokens_decoder") or {}
    keys = ("lstrip", "rstrip", "single_word", "normalized")
    told = [
        AddedToken(
            int(i), str(it["content"]), bool(it.get("special", True)), *(bool(it.get(key)) for key in keys)
        )
        for i, it in listed.items()
    ]
    return tuple(told or (AddedToken(int(i), text) for text, i in older.items()))
