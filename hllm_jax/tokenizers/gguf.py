"""Tokenizers described by the metadata of a GGUF file (`tokenizer.ggml.*`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.huggingface import TokenizersCodec, known_ends
from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hllm_jax.tokenizers.codec import Codec

# gguf-py, TokenType
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# How a text is cut before merging, by the name in `tokenizer.ggml.pre`:
# (regular expression, digits one by one first, Unicode NFC first, whole vocabulary entries before merges).
PRE: dict[str, tuple[str, bool, bool, bool]] = {
    **dict.fromkeys(
        ("default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "dbrx"), (GPT2, False, False, False)
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (GPT2, True, False, False),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1"), (LLAMA3, False, False, True)
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan"), (QWEN2, False, True, False)),
}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from the metadata of a GGUF file.

    Args:
        metadata: the file's keys to Python values; read are `tokenizer.ggml.model` ("gpt2" is byte-level BPE,
            "llama" is SentencePiece), `.tokens`, `.token_type`, `.merges` or `.scores`, `.pre`, the ids
            `.bos_token_id`, `.eos_token_id`, `.eot_token_id`, `.padding_token_id`, `.unknown_token_id`,
            `.add_bos_token`, `.add_space_prefix`, and `tokenizer.chat_template`.

    Raises:
        TokenizerError: something is missing, inconsistent or of an unknown kind; the message names the key.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    model = get("model")
    tokens: list[str] = list(get("tokens") or [])
    if not tokens:
        raise TokenizerError("the GGUF metadata has no tokenizer: tokenizer.ggml.tokens is missing or empty")
    types: list[int] = [int(t) for t in get("token_type") or [1] * len(tokens)]
    if len(types) != len(tokens):
        raise TokenizerError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    pre = get("pre") or "default"
    codec: Codec
    if model == "gpt2":
        codec = TokenizersCodec(byte_bpe_definition(tokens, list(get("merges") or []), types, pre))
    elif model == "llama":
        scores = [float(s) for s in get("scores") or []]
        codec = SentencePieceCodec(
            sentencepiece_model(tokens, scores, types, bool(get("add_space_prefix", True)))
        )
    else:
        raise TokenizerError(
            f'tokenizer.ggml.model is {model!r}; known are "gpt2" (byte-level BPE) and "llama"'
        )
    bos, eos = get("bos_token_id"), get("eos_token_id")
    if eos is None:
        raise TokenizerError("the GGUF metadata has no tokenizer.ggml.eos_token_id")
    pad = get("padding_token_id")
    further = [int(i) for key in ("eot_token_id", "eom_token_id") if (i := get(key)) is not None]
    default_add_bos = model == "llama" or pre in ("llama-bpe", "llama3", "llama-v3")
    return Tokenizer(
        codec,
        bos_id=None if bos is None else int(bos),
        eos_id=int(eos),
        pad_id=int(eos if pad is None else pad),
        stop_ids=[*further, *known_ends({token.text: token.id for token in codec.special})],
        add_bos=bool(get("add_bos_token", default_add_bos)),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def byte_bpe_definition(tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], pre: str) -> str:
    """The text of a `tokenizer.json` for byte-level BPE.

    Args:
        tokens: spelling of each id, bytes in GPT-2's spelling.
        merges: `"left right"`, best first.
        types: GGUF token type of each id.
        pre: name of the pre-tokenizer, a key of `PRE`.

    Raises:
        TokenizerError: no merges, one whose result is no token, two ids of one spelling, an unknown `pre`.
    """
    if pre not in PRE:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}; known are {', '.join(sorted(PRE))}")
    if not merges:
        raise TokenizerError("tokenizer.ggml.merges is missing or empty: byte-level BPE needs its merges")
    pattern, digits, nfc, whole = PRE[pre]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        double = next(text for i, text in enumerate(tokens) if vocabulary[text] != i)
        raise TokenizerError(f"tokenizer.ggml.tokens lists {double!r} twice")
    pairs = [merge.split(" ") for merge in merges]
    for rank, pair in enumerate(pairs):
        if len(pair) != 2 or "".join(pair) not in vocabulary:
            raise TokenizerError(
                f"tokenizer.ggml.merges[{rank}] is {merges[rank]!r}, whose result is no token"
            )
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    steps += [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]
    added = [
        {
            "id": i,
            "content": text,
            "special": types[i] != USER_DEFINED,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for i, text in enumerate(tokens)
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs, "ignore_merges": whole},
    }
    return json.dumps(content, ensure_ascii=False)


def sentencepiece_model(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], space_prefix: bool
) -> bytes:
    """A serialised SentencePiece BPE model; GGUF's token types are SentencePiece's own.

    Raises:
        TokenizerError: the scores do not match the tokens, or the file's entries are refused.
    """
    from sentencepiece import sentencepiece_model_pb2

    if len(scores) != len(tokens):
        raise TokenizerError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    for text, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = 6 in types
    for name in ("unk", "bos", "eos", "pad"):
        setattr(proto.trainer_spec, f"{name}_id", -1)
    unknown = [i for i, kind in enumerate(types) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerError(f"tokenizer.ggml.token_type marks {len(unknown)} unknown tokens, it must be one")
    proto.trainer_spec.unk_id = unknown[0]
    proto.trainer_spec.unk_piece = tokens[unknown[0]]
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = space_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
