"""Tokenizer folders: written so that others can read them too, read whether we or others wrote them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from etils import epath

from hllm_jax.tokenizers.errors import NoTokenizer, TokenizerError
from hllm_jax.tokenizers.huggingface import TokenizersCodec, from_tokenizer_json, known_ends
from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from hllm_jax.tokenizers.codec import Codec

MODEL_FILES = (TokenizersCodec.FILE, SentencePieceCodec.FILE)
CONFIG, TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
OURS = "hllm"  # the section of tokenizer_config.json that only we read


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer folder: ours, or that of a Hugging Face model.

    Args:
        folder: holds tokenizer.json or tokenizer.model; a local path or any that `etils.epath` reads.

    Raises:
        TokenizerError: there is no tokenizer, or a file is damaged; the message names the file.
    """
    path = epath.Path(folder)
    names = (*MODEL_FILES, CONFIG, TEMPLATE, GENERATION, "special_tokens_map.json", "config.json")
    files = {name: (path / name).read_bytes() for name in names if (path / name).exists()}
    if not any(name in files for name in MODEL_FILES):
        what = "does not exist" if not path.exists() else "holds no tokenizer.json and no tokenizer.model"
        raise NoTokenizer(f"no tokenizer in {path}: the folder {what}")
    return tokenizer_of(files, str(path))


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write tokenizer.model or tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder.

    Each file appears whole or not at all. The names and keys are those that `transformers` reads.
    """
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(tokenizer).items():
        draft = path / f"{name}.tmp"
        draft.write_bytes(content)
        draft.replace(path / name)


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name to content of a whole tokenizer folder."""
    files = tokenizer.codec.files()
    spelled = {i: text for text, i in tokenizer.special_ids.items()}
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if TokenizersCodec.FILE in files else "LlamaTokenizer",
        **{name: spelled[i] for name, i in names.items() if i is not None and i in spelled},
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "add_prefix_space": tokenizer.codec.adds_space,
        OURS: {**tokenizer.settings, "sha256": _checksums(files)},
    }
    files[CONFIG] = (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()
    if tokenizer.chat_template is not None:
        files[TEMPLATE] = tokenizer.chat_template.encode()
    return files


def tokenizer_of(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer of a folder's files.

    Args:
        files: file name to content.
        where: for messages.
    """
    config = _json_object(files, CONFIG, where)
    template = _template(files, config, where)
    try:
        if OURS in config:
            return _own(files, config[OURS], template, where)
        return _foreign(files, config, template, where)
    except TokenizerError as error:
        if where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error


def _own(
    files: Mapping[str, bytes], settings: Mapping[str, Any], template: str | None, where: str
) -> Tokenizer:
    for name, expected in settings.get("sha256", {}).items():
        if name not in files:
            raise TokenizerError(f"{where}: {name} is missing")
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise TokenizerError(
                f"{where}/{name} is damaged or of another tokenizer: its SHA-256 is {found[:12]}…, "
                f"{CONFIG} says {expected[:12]}… ({len(files[name])} bytes)"
            )
    missing = sorted({"bos_id", "eos_id", "pad_id", "stop_ids", "add_bos"} - set(settings))
    if missing:
        raise TokenizerError(f"{where}/{CONFIG}: the section {OURS!r} lacks {', '.join(missing)}")
    return Tokenizer(
        _codec(files, where),
        bos_id=settings["bos_id"],
        eos_id=settings["eos_id"],
        pad_id=settings["pad_id"],
        stop_ids=settings["stop_ids"],
        add_bos=settings["add_bos"],
        chat_template=template,
    )


def _foreign(
    files: Mapping[str, bytes], config: Mapping[str, Any], template: str | None, where: str
) -> Tokenizer:
    names = {**_json_object(files, "special_tokens_map.json", where), **config}
    bos, eos, pad = (_spelling(names.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
    stops: list[int] = []
    for file in (GENERATION, "config.json"):
        ends = _json_object(files, file, where).get("eos_token_id")
        stops += [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)]
    eos = eos if eos is not None else stops[0] if stops else _spelling(names.get("sep_token"))
    if TokenizersCodec.FILE in files:
        return from_tokenizer_json(
            _text(files, TokenizersCodec.FILE, where),
            bos=bos,
            eos=eos,
            pad=pad,
            stop=stops,
            add_bos=config.get("add_bos_token"),
            chat_template=template,
        )
    codec = SentencePieceCodec(files[SentencePieceCodec.FILE])
    ids = {token.text: token.id for token in codec.special}
    beyond = sorted(i for i in map(int, config.get("added_tokens_decoder", {})) if i >= codec.vocab_size)
    if beyond:
        raise TokenizerError(
            f"{CONFIG} adds tokens from id {beyond[0]} on to tokenizer.model: tokenizer.json is needed"
        )
    bos, eos = ids.get(bos or "<s>"), eos if isinstance(eos, int) else ids.get(eos or "</s>")
    if eos is None:
        raise TokenizerError(
            f"no end-of-document token is known: {CONFIG} needs an eos_token of tokenizer.model"
        )
    return Tokenizer(
        codec,
        bos_id=bos,
        eos_id=eos,
        pad_id=ids.get(str(pad), eos),
        stop_ids=[*stops, *known_ends(ids)],
        add_bos=bool(config.get("add_bos_token", True)),
        chat_template=template,
    )


def _codec(files: Mapping[str, bytes], where: str) -> Codec:
    if TokenizersCodec.FILE in files:
        return TokenizersCodec(_text(files, TokenizersCodec.FILE, where))
    return SentencePieceCodec(files[SentencePieceCodec.FILE])


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> str | None:
    if TEMPLATE in files:
        return _text(files, TEMPLATE, where)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        return named.get("default")
    return template


def _spelling(token: object) -> str | None:
    """A token of tokenizer_config.json: a string, or an object with its `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _text(files: Mapping[str, bytes], name: str, where: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where}/{name} is damaged: no UTF-8 text ({error})") from None


def _json_object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        content = json.loads(_text(files, name, where))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{where}/{name} is damaged: no JSON ({error})") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{where}/{name} must hold a JSON object, not a {type(content).__name__}")
    return content


def _checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
