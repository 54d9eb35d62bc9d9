"""Tokenizers described by the metadata of a GGUF file (`tokenizer.ggml.*`), as llama.cpp understands it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hllm_jax.tokenizers import definitions
from hllm_jax.tokenizers.assembly import assemble
from hllm_jax.tokenizers.codec import Codec
from hllm_jax.tokenizers.cutting import BETWEEN_SEPARATORS, CUTTINGS
from hllm_jax.tokenizers.definitions import AddedToken
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.huggingface import TokenizersCodec
from hllm_jax.tokenizers.proto import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Proto
from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec
from hllm_jax.tokenizers.spelling import SPACE
from hllm_jax.tokenizers.tokenizer import Tokenizer

# Ids of special tokens where a file does not say, by model.
DEFAULT_IDS: dict[str, dict[str, int]] = {
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}
KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so it is spelled there
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}


def _listed(array: Any) -> list[Any]:
    """The values of a list, an array or nothing."""
    return [] if array is None else list(array)


class Vocabulary(NamedTuple):
    """What every model's builder gets.

    Attributes:
        get: a value by its key after `tokenizer.ggml.`, with a default.
        tokens, types: of each id.
        ids: of special tokens by role.
        frame: around texts.
    """

    get: Callable[..., Any]
    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]
    frame: Frame

    def added(self) -> list[AddedToken]:
        """The tokens that are more than text. What stands around texts is, whatever its type says."""
        return [
            AddedToken(i, text, special=kind != USER_DEFINED)
            for i, (text, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) or i in self.frame.ids
        ]

    def scores(self) -> tuple[float, ...]:
        """The score of each token."""
        scores = [float(score) for score in _listed(self.get("scores"))]
        if len(scores) != len(self.tokens):
            raise TokenizerError(
                f"tokenizer.ggml.scores has {len(scores)} entries for {len(self.tokens)} tokens"
            )
        return tuple(scores)


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from the metadata of a GGUF file.

    Args:
        metadata: the file's keys to Python values; read are `tokenizer.ggml.model` ("gpt2" is byte-level
            BPE, "llama" SentencePiece BPE, "t5" SentencePiece unigram, "bert" WordPiece), `.tokens`,
            `.token_type`, `.scores`, `.merges`, `.pre`, the ids of special tokens, `.add_bos_token`,
            `.add_eos_token`, `.add_space_prefix`, `.remove_extra_whitespaces`, `.precompiled_charsmap`,
            `.normalizer.lowercase`, and `tokenizer.chat_template`.

    Raises:
        TokenizerError: something is missing, inconsistent or of an unknown kind; the message names the key.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    model = get("model")
    tokens: list[str] = _listed(get("tokens"))
    if not tokens:
        raise TokenizerError("the GGUF metadata has no tokenizer: tokenizer.ggml.tokens is missing or empty")
    if model not in BUILDERS:
        known = ", ".join(f'"{name}" ({what})' for name, (_, what) in BUILDERS.items())
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}; known are {known}")
    types: list[int] = [int(t) for t in _listed(get("token_type"))] or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    if len(set(tokens)) != len(tokens):
        places = {text: i for i, text in enumerate(tokens)}
        double = next(text for i, text in enumerate(tokens) if places[text] != i)
        raise TokenizerError(f"tokenizer.ggml.tokens lists {double!r} twice")
    pre = str(get("pre") or "default")
    if model == "gpt2" and pre not in CUTTINGS:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}; known are {', '.join(sorted(CUTTINGS))}")
    told = {role: int(i) for role, key in KEYS.items() if (i := get(key)) is not None}
    ids = {**{r: i for r, i in DEFAULT_IDS.get(model, {}).items() if i < len(tokens)}, **told}
    if model == "bert" or pre in BETWEEN_SEPARATORS:
        # Files name the first token as begin, and the separator by one name or both.
        for role, other, key in (("cls", "bos", "bos"), ("sep", "eos", "sep"), ("eos", "sep", "sep")):
            if role not in ids and other not in ids:
                raise TokenizerError(f"the GGUF metadata has no tokenizer.ggml.{KEYS[key]}")
            ids.setdefault(role, ids.get(other, 0))
    if "eos" not in ids:
        raise TokenizerError("the GGUF metadata has no tokenizer.ggml.eos_token_id")
    for role, i in ids.items():
        if not 0 <= i < len(tokens):
            raise TokenizerError(f"the {role} id {i} is outside the vocabulary of {len(tokens)} ids")
    frame = _frame(model, pre, ids, get)
    codec = BUILDERS[model][0](Vocabulary(get, tokens, types, ids, frame))
    names = {role: i for role, i in ids.items() if not (role == "bos" and model == "bert")}
    further = [int(i) for key in ("eot_token_id", "eom_token_id") if (i := get(key)) is not None]
    template = metadata.get("tokenizer.chat_template")
    return assemble(codec, {}, names, frame=frame, stop=further, chat_template=template)


def _frame(model: str, pre: str, ids: Mapping[str, int], get: Callable[..., Any]) -> Frame:
    if model == "bert":
        return Frame.of("cls A sep", "cls A sep B:1 sep:1", ids)
    if pre in BETWEEN_SEPARATORS:
        return Frame.of("cls A sep", "cls A sep sep B sep", ids)
    if model == "t5" and get("add_eos_token", True) and not get("add_bos_token", False):
        return Frame.of("A eos", "A eos B eos", ids)
    add_bos = model == "llama" or (model == "gpt2" and CUTTINGS[pre].add_bos)
    return Frame.plain(
        ids.get("bos") if get("add_bos_token", add_bos) else None,
        ids.get("eos") if get("add_eos_token", False) else None,
    )


def _byte_bpe(vocabulary: Vocabulary) -> Codec:
    places = {text: i for i, text in enumerate(vocabulary.tokens)}
    merges = _listed(vocabulary.get("merges"))
    if not merges:
        raise TokenizerError("tokenizer.ggml.merges is missing or empty: byte-level BPE needs its merges")
    pairs = [merge.split(" ") for merge in merges]
    for rank, pair in enumerate(pairs):
        if len(pair) != 2 or "".join(pair) not in places:
            raise TokenizerError(
                f"tokenizer.ggml.merges[{rank}] is {merges[rank]!r}, whose result is no token"
            )
    cutting = CUTTINGS[str(vocabulary.get("pre") or "default")]
    return TokenizersCodec(
        definitions.byte_bpe(
            places,
            pairs,
            patterns=cutting.patterns,
            whole=cutting.whole,
            normalizer=[{"type": "NFC"}] if cutting.nfc else [],
            added=vocabulary.added(),
            frame=vocabulary.frame,
        )
    )


def _sentencepiece(vocabulary: Vocabulary) -> Codec:
    scores = vocabulary.scores()
    if (count := vocabulary.types.count(UNKNOWN)) != 1:
        raise TokenizerError(f"tokenizer.ggml.token_type marks {count} unknown tokens, it must be one")
    proto = Proto(
        kind="bpe",
        texts=tuple(vocabulary.tokens),
        scores=scores,
        types=tuple(vocabulary.types),
        dummy_prefix=bool(vocabulary.get("add_space_prefix", True)),
        remove_extra_whitespaces=False,
        byte_fallback=6 in vocabulary.types,
    )
    return SentencePieceCodec(proto.write())


def _unigram(vocabulary: Vocabulary) -> Codec:
    scores, unknown = vocabulary.scores(), vocabulary.ids["unk"]
    tokens, types = _with_sentinels(vocabulary)
    charsmap = bytes(_listed(vocabulary.get("precompiled_charsmap")))
    named = vocabulary._replace(tokens=tokens, types=types)
    spaces = [bool(vocabulary.get(key)) for key in ("add_space_prefix", "remove_extra_whitespaces")]
    if spaces == [True, True]:
        pieces = list(zip(tokens, scores, strict=True))
        parts: dict[str, Any] = {"added": named.added(), "frame": vocabulary.frame}
        return TokenizersCodec(definitions.unigram(pieces, unknown, charsmap=charsmap, **parts))
    proto = Proto("unigram", tuple(tokens), scores, tuple(types), charsmap, *spaces)
    return TokenizersCodec(proto.tokenizer_json(vocabulary.frame))


def _with_sentinels(vocabulary: Vocabulary) -> tuple[list[str], list[int]]:
    """llama.cpp's converter writes T5's 100 sentinels as `[PAD32000]`, `[PAD32001]`, …, type unused."""
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    types[vocabulary.ids["unk"]] = UNKNOWN
    if not any(text.startswith("<extra_id_") for text in tokens):
        blanks = [i for i, text in enumerate(tokens) if re.fullmatch(r"\[PAD\d+\]", text)]
        for number, i in zip(reversed(range(100)), blanks, strict=False):
            tokens[i], types[i] = f"<extra_id_{number}>", CONTROL
    return tokens, types


def _wordpiece(vocabulary: Vocabulary) -> Codec:
    """What begins a word has U+2581 before it there, what continues one nothing."""

    def plain(text: str, kind: int) -> str:
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) or (text[:1] == "[" and text[-1:] == "]"):
            return text
        return text[1:] if text.startswith(SPACE) else f"##{text}"

    tokens = [plain(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)]
    lowercase = bool(vocabulary.get("normalizer.lowercase", True))
    accents = bool(vocabulary.get("normalizer.strip_accents", lowercase))
    ids = {text: i for i, text in enumerate(tokens)}
    if "unk" not in vocabulary.ids:
        raise TokenizerError("the GGUF metadata has no tokenizer.ggml.unknown_token_id")
    unknown = tokens[vocabulary.ids["unk"]]
    rules = definitions.bert_normalizer(lowercase, accents)
    added = vocabulary._replace(tokens=tokens).added()
    return TokenizersCodec(definitions.wordpiece(ids, unknown, rules, added=added, frame=vocabulary.frame))


BUILDERS: dict[str, tuple[Callable[[Vocabulary], Codec], str]] = {
    "gpt2": (_byte_bpe, "byte-level BPE"),
    "llama": (_sentencepiece, "SentencePiece BPE"),
    "t5": (_unigram, "SentencePiece unigram"),
    "bert": (_wordpiece, "WordPiece"),
}
