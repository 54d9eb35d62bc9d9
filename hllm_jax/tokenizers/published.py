"""The conventions of published tokenizers: what their files leave unsaid, by tokenizer class.

The older a published model is, the less its folder says: the rules of BERT, GPT-1, GPT-2, RoBERTa, XLM-R, T5,
ALBERT, Qwen2 and LLaMA-2 stand in the code that their vocabularies were published with. They are written
down here as data. A `tokenizer.json`, where there is one, says its rules itself; then only names of tokens
come from here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from hllm_jax.tokenizers import definitions
from hllm_jax.tokenizers.definitions import AddedToken, Content
from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.proto import CONTROL, UNKNOWN, Proto

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A vocabulary on the way to a tokenizer.json.

    Attributes:
        config: tokenizer_config.json.
        tokens: spelling of the special token of each role.
        added: tokens that the config adds to the vocabulary files.
        frame: of the convention, None for none.
    """

    config: Mapping[str, Any]
    tokens: Mapping[str, str]
    added: tuple[AddedToken, ...]
    frame: Callable[[Mapping[str, int]], Frame | None]

    def special(self, vocabulary: Mapping[str, int], more: tuple[AddedToken, ...] = ()) -> list[AddedToken]:
        """All added tokens: those of the config, `more`, and the roles.

        Raises:
            TokenizerError: a role whose token is nowhere, or an added token whose id is another's.
        """
        found = {token.content: token for token in more}
        free = len(vocabulary)
        for token in sorted(self.added, key=lambda token: token.id):
            expected = vocabulary.get(token.content, free)
            if token.id != expected:
                raise TokenizerError(
                    f"the added token {token.content!r} has the id {token.id}, but its place in the "
                    f"vocabulary of {len(vocabulary)} entries is {expected}"
                )
            free += token.content not in vocabulary
            found[token.content] = token
        for role, text in self.tokens.items():
            if text not in vocabulary and text not in found:
                raise TokenizerError(
                    f"the vocabulary of {len(vocabulary)} entries lacks its {role} token {text!r}; if it is "
                    f'spelled otherwise, say {{"{role}_token": "…"}} in tokenizer_config.json'
                )
            if text not in found:
                found[text] = AddedToken(vocabulary[text], text)
        return list(found.values())


@dataclasses.dataclass(frozen=True)
class Convention:
    """What a tokenizer class takes for granted.

    Attributes:
        tokens: default spelling of special tokens by role.
        files: the vocabulary files, without which there must be a tokenizer.json.
        build: from the files' contents and `Parts` to a tokenizer.json; None: the SentencePiece model itself.
        single, pair: special tokens around one text and two, by role; empty: begin and end by the config.
    """

    tokens: Mapping[str, str]
    files: tuple[str, ...]
    build: Callable[[list[bytes], Parts], Content] | None
    single: str = ""
    pair: str = ""

    def frame(self, roles: Mapping[str, int]) -> Frame | None:
        """The frame with the ids of the roles, None if the convention has none."""
        return Frame.of(self.single, self.pair, roles) if self.single else None


def _vocabulary_json(content: bytes) -> dict[str, int]:
    try:
        vocabulary = json.loads(content)
    except ValueError as error:
        raise TokenizerError(f"vocab.json is damaged: no JSON ({error})") from None
    ids: list[Any] = list(vocabulary.values()) if isinstance(vocabulary, dict) else [None]
    if not all(isinstance(i, int) for i in ids) or sorted(ids) != list(range(len(ids))):
        raise TokenizerError("vocab.json must give the ids 0, 1, 2, … to its entries, each once")
    return vocabulary


def _merges_txt(content: bytes) -> list[list[str]]:
    lines = _lines("merges.txt", content)
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    for number, pair in enumerate(merges):
        if len(pair) != 2:
            raise TokenizerError(
                f"merges.txt is damaged: merge {number} is {' '.join(pair)!r}, not two entries"
            )
    return merges


def _lines(name: str, content: bytes) -> list[str]:
    try:
        # By line feeds alone: entries hold other characters that end lines elsewhere.
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is damaged: no UTF-8 text ({error})") from None
    return [line.removesuffix("\r") for line in lines]


def _known(vocabulary: Mapping[str, int], merges: list[list[str]]) -> list[list[str]]:
    for number, (left, right) in enumerate(merges):
        for text in (left, right, left + right):
            if text not in vocabulary:
                raise TokenizerError(
                    f"merge {number} of merges.txt, {left!r} and {right!r}: {text!r} is not in vocab.json; "
                    "the two files are not of one tokenizer"
                )
    return merges


def _wordpiece(files: list[bytes], parts: Parts) -> Content:
    texts = _lines("vocab.txt", files[0])
    while texts and not texts[-1]:
        texts.pop()
    vocabulary = {text: i for i, text in enumerate(texts)}
    if len(vocabulary) != len(texts):
        double = next(text for i, text in enumerate(texts) if vocabulary[text] != i)
        raise TokenizerError(f"vocab.txt lists {double!r} twice")
    if not vocabulary:
        raise TokenizerError("vocab.txt is empty")
    config = parts.config
    normalizer = definitions.bert_normalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    added = parts.special(vocabulary)
    return definitions.wordpiece(
        vocabulary, parts.tokens["unk"], normalizer, added=added, frame=parts.frame(_roles(parts, added))
    )


def _byte_bpe(files: list[bytes], parts: Parts, patterns: tuple[str, ...] = (), nfc: bool = False) -> Content:
    vocabulary = _vocabulary_json(files[0])
    added = parts.special(vocabulary)
    return definitions.byte_bpe(
        vocabulary,
        _known(vocabulary, _merges_txt(files[1])),
        patterns=patterns,
        add_prefix_space=bool(parts.config.get("add_prefix_space", False)),
        normalizer=[{"type": "NFC"}] if nfc else [],
        added=added,
        frame=parts.frame(_roles(parts, added)),
    )


def _word_bpe(files: list[bytes], parts: Parts) -> Content:
    vocabulary = _vocabulary_json(files[0])
    merges = _known(vocabulary, _merges_txt(files[1]))
    return definitions.word_bpe(
        vocabulary, merges, parts.tokens["unk"], added=parts.special(vocabulary), frame=None
    )


def _unigram(proto: Proto) -> list[tuple[str, float]]:
    if proto.kind != "unigram":
        raise TokenizerError(f"the SentencePiece model is of the kind {proto.kind!r}, not unigram")
    return list(zip(proto.texts, proto.scores, strict=True))


def _control(proto: Proto) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(i, text)
        for i, (text, kind) in enumerate(zip(proto.texts, proto.types, strict=True))
        if kind in (CONTROL, UNKNOWN)
    )


def _t5(files: list[bytes], parts: Parts) -> Content:
    proto = Proto.read(files[0])
    pieces = _unigram(proto)
    count = int(parts.config.get("extra_ids", 100))
    sentinels = tuple(
        AddedToken(len(pieces) + place, f"<extra_id_{number}>")
        for place, number in enumerate(reversed(range(count)))
    )
    pieces += [(token.content, 0.0) for token in sentinels]
    vocabulary = {text: i for i, (text, _) in enumerate(pieces)}
    added = parts.special(vocabulary, (*_control(proto), *sentinels))
    return definitions.unigram(
        pieces, proto.unknown, charsmap=proto.charsmap, added=added, frame=parts.frame(_roles(parts, added))
    )


def _albert(files: list[bytes], parts: Parts) -> Content:
    proto = Proto.read(files[0])
    pieces = _unigram(proto)
    added = parts.special({text: i for i, (text, _) in enumerate(pieces)}, _control(proto))
    before: list[Content] = [
        {"type": "Replace", "pattern": {"String": quotes}, "content": '"'} for quotes in ("``", "''")
    ]
    if not parts.config.get("keep_accents", False):
        before += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if parts.config.get("do_lower_case", True):
        before.append({"type": "Lowercase"})
    return definitions.unigram(
        pieces,
        proto.unknown,
        charsmap=proto.charsmap,
        before=before,
        added=added,
        frame=parts.frame(_roles(parts, added)),
    )


def _xlm_roberta(files: list[bytes], parts: Parts) -> Content:
    """Fairseq's ids: four tokens in place of SentencePiece's three, then its pieces, and the mask last."""
    proto = Proto.read(files[0])
    pieces = _unigram(proto)
    if proto.types[:3] != (UNKNOWN, CONTROL, CONTROL):
        first = ", ".join(map(repr, proto.texts[:3]))
        raise TokenizerError(
            "sentencepiece.bpe.model must begin with its unknown, begin and end, in whose place four others "
            f"come; it begins with {first}"
        )
    first = [(parts.tokens[role], 0.0) for role in ("bos", "pad", "eos", "unk")]
    pieces = [*first, *pieces[3:], (parts.tokens["mask"], 0.0)]
    added = parts.special({text: i for i, (text, _) in enumerate(pieces)})
    return definitions.unigram(
        pieces, 3, charsmap=proto.charsmap, added=added, frame=parts.frame(_roles(parts, added))
    )


def _roles(parts: Parts, added: list[AddedToken]) -> dict[str, int]:
    ids = {token.content: token.id for token in added}
    return {role: ids[text] for role, text in parts.tokens.items()}


BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
GPT2_TOKENS = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
ROBERTA_TOKENS = {
    **{"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>"},
    **{"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
}
T5_TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
ALBERT_TOKENS = {
    **{"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "sep": "[SEP]"},
    **{"pad": "<pad>", "cls": "[CLS]", "mask": "[MASK]"},
}
LLAMA_TOKENS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
GEMMA_TOKENS = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
# GPT-1 was published without a token for the end of a text; its unknown token ends one best.
GPT1_TOKENS = {"unk": "<unk>", "eos": "<unk>"}

BERT_FRAME = {"single": "cls A sep", "pair": "cls A sep B:1 sep:1"}
ROBERTA_FRAME = {"single": "cls A sep", "pair": "cls A sep sep B sep"}
BPE_FILES = ("vocab.json", "merges.txt")

CONVENTIONS: dict[str, Convention] = {
    "BertTokenizer": Convention(BERT_TOKENS, ("vocab.txt",), _wordpiece, **BERT_FRAME),
    "GPT2Tokenizer": Convention(GPT2_TOKENS, BPE_FILES, _byte_bpe),
    "RobertaTokenizer": Convention(ROBERTA_TOKENS, BPE_FILES, _byte_bpe, **ROBERTA_FRAME),
    "XLMRobertaTokenizer": Convention(
        ROBERTA_TOKENS, ("sentencepiece.bpe.model",), _xlm_roberta, **ROBERTA_FRAME
    ),
    "Qwen2Tokenizer": Convention(
        dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
        BPE_FILES,
        lambda files, parts: _byte_bpe(files, parts, (definitions.QWEN2,), nfc=True),
    ),
    "OpenAIGPTTokenizer": Convention(GPT1_TOKENS, BPE_FILES, _word_bpe),
    "T5Tokenizer": Convention(T5_TOKENS, ("spiece.model",), _t5, single="A eos", pair="A eos B eos"),
    "AlbertTokenizer": Convention(ALBERT_TOKENS, ("spiece.model",), _albert, **BERT_FRAME),
    "LlamaTokenizer": Convention(LLAMA_TOKENS, ("tokenizer.model",), None),
    "GemmaTokenizer": Convention(GEMMA_TOKENS, ("tokenizer.model",), None),
}

# The class where tokenizer_config.json names none, by `model_type` of config.json.
MODEL_TYPES = {
    **dict.fromkeys(("bert", "distilbert", "mobilebert", "electra"), "BertTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo"), "GPT2Tokenizer"),
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    "openai-gpt": "OpenAIGPTTokenizer",
    **dict.fromkeys(("t5", "mt5", "umt5"), "T5Tokenizer"),
    "albert": "AlbertTokenizer",
    **dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2"), "GemmaTokenizer"),
}
# Other names of the same rules.
SAME = {
    **dict.fromkeys(("DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"), "BertTokenizer"),
    "CodeLlamaTokenizer": "LlamaTokenizer",
}

# These say nothing beyond their tokenizer.json.
GENERAL = ("PreTrainedTokenizer", "TokenizersBackend", "PreTrainedTokenizerBase")


def class_of(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str | None:
    """The tokenizer class that a folder names, by itself or through its model; None if it names none.

    Args:
        config: tokenizer_config.json.
        model_config: config.json.
    """
    named = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    name = named.removesuffix("Fast") if isinstance(named, str) else None
    if name is None or name in GENERAL:
        of_model = MODEL_TYPES.get(str(model_config.get("model_type")))
        return of_model if name is None else None
    return SAME.get(name, name)
