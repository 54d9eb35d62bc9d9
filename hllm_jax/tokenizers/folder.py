"""Tokenizer folders: written so that others can read them too, read whether we or others wrote them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from etils import epath

from hllm_jax.tokenizers import definitions
from hllm_jax.tokenizers.assembly import assemble
from hllm_jax.tokenizers.errors import NoTokenizer, TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.huggingface import TokenizersCodec
from hllm_jax.tokenizers.published import CONVENTIONS, ROLES, Convention, Parts, class_of
from hllm_jax.tokenizers.sentencepiece import SentencePieceCodec
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

JSON, MODEL = TokenizersCodec.FILE, SentencePieceCodec.FILE
VOCABULARIES = (JSON, MODEL, "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
CONFIG, TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
NAMES, ADDED, MODEL_CONFIG = "special_tokens_map.json", "added_tokens.json", "config.json"
OURS = "hllm"  # the section of tokenizer_config.json that only we read
# What a tokenizer of ours cannot do without; the other settings are written where they say something.
NEEDED = ("bos_id", "eos_id", "pad_id", "stop_ids", "add_bos")


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer folder: ours, or that of a Hugging Face model.

    Args:
        folder: holds tokenizer.json, tokenizer.model, spiece.model, sentencepiece.bpe.model, vocab.txt, or
            vocab.json and merges.txt; a local path or any that `etils.epath` reads.

    Raises:
        NoTokenizer: none of these files is there.
        TokenizerError: a file is damaged or missing, what kind it is cannot be told, or the vocabulary lacks
            its special tokens; the message names the folder and the file.
    """
    path = epath.Path(folder)
    names = (*VOCABULARIES, "merges.txt", CONFIG, TEMPLATE, GENERATION, NAMES, ADDED, MODEL_CONFIG)
    files = {name: (path / name).read_bytes() for name in names if (path / name).exists()}
    if not any(name in files for name in VOCABULARIES):
        what = "does not exist" if not path.exists() else f"holds none of {', '.join(VOCABULARIES)}"
        raise NoTokenizer(f"no tokenizer in {path}: the folder {what}")
    return tokenizer_of(files, str(path))


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer folder: what we read ourselves, and what `transformers` reads.

    Each file appears whole or not at all. Beside a tokenizer.model lies a tokenizer.json of the same ids.
    """
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    files = files_of(tokenizer)
    if isinstance(tokenizer.codec, SentencePieceCodec):
        content = tokenizer.codec.proto.tokenizer_json(tokenizer.frame)
        files[JSON] = json.dumps(content, ensure_ascii=False).encode()
    for name, content in files.items():
        draft = path / f"{name}.tmp"
        draft.write_bytes(content)
        draft.replace(path / name)


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name to content of all that `tokenizer_of` needs."""
    files = tokenizer.codec.files()
    spelled = {i: text for text, i in tokenizer.special_ids.items()}
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": spelled[i] for role, i in ids.items() if i is not None and i in spelled},
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
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
    checksums: Mapping[str, str] = settings.get("sha256", {})
    for name, expected in checksums.items():
        if name not in files:
            raise TokenizerError(f"{where}: {name} is missing")
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise TokenizerError(
                f"{where}/{name} is damaged or of another tokenizer: its SHA-256 is {found[:12]}…, "
                f"{CONFIG} says {expected[:12]}… ({len(files[name])} bytes)"
            )
    missing = sorted(set(NEEDED) - set(settings))
    if missing:
        raise TokenizerError(f"{where}/{CONFIG}: the section {OURS!r} lacks {', '.join(missing)}")
    codec = (
        SentencePieceCodec(files[MODEL]) if MODEL in checksums else TokenizersCodec(_text(files, JSON, where))
    )
    chosen = {name: value for name, value in settings.items() if name != "sha256"}
    return Tokenizer.of_settings(codec, chosen, template)


def _foreign(
    files: Mapping[str, bytes], config: Mapping[str, Any], template: str | None, where: str
) -> Tokenizer:
    model_config = _json_object(files, MODEL_CONFIG, where)
    name = class_of(config, model_config)
    convention = CONVENTIONS.get(name or "")
    listed = {**_json_object(files, NAMES, where), **config}
    said = {role: text for role in ROLES if (text := _spelling(listed.get(f"{role}_token"))) is not None}
    stops: list[int] = []
    for content in (_json_object(files, GENERATION, where), model_config):
        ends = content.get("eos_token_id")
        stops += [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)]
    if JSON not in files:
        convention = convention or _convention_of(files, name)
        missing = [file for file in (convention.files if convention else ()) if file not in files]
        if missing:
            raise TokenizerError(f"{' and '.join(missing)} is missing, and so is {JSON}")
    own_frame = bool(convention and convention.single)
    flags = {f"add_{role}": None if own_frame else config.get(f"add_{role}_token") for role in ("bos", "eos")}
    if JSON in files:
        codec = TokenizersCodec(_text(files, JSON, where))
    elif convention is not None and convention.build is not None:
        codec = TokenizersCodec(_built(files, convention, config, said, where))
    else:
        return _sentencepiece(files[MODEL], convention, config, said, stops, template)
    return assemble(
        codec,
        codec.vocabulary,
        _named(convention.tokens if convention else {}, said, stops, codec.vocabulary),
        frame=codec.frame,
        stop=stops,
        add_bos=flags["add_bos"],
        add_eos=flags["add_eos"],
        chat_template=template,
    )


def _convention_of(files: Mapping[str, bytes], name: str | None) -> Convention | None:
    """What vocabulary files without a tokenizer.json imply; None: a SentencePiece model as it is."""
    if name is None and MODEL in files:
        return None
    if name is None and "vocab.txt" in files:
        return CONVENTIONS["BertTokenizer"]
    found = next(file for file in VOCABULARIES if file in files)
    told = (
        f"of the class {name!r}, which" if name else "of a class that neither it nor config.json names, which"
    )
    raise TokenizerError(
        f"{found} is {told} is not known without a tokenizer.json; name one of {', '.join(CONVENTIONS)} as "
        f"tokenizer_class in {CONFIG}"
    )


def _built(
    files: Mapping[str, bytes],
    convention: Convention,
    config: Mapping[str, Any],
    said: Mapping[str, str],
    where: str,
) -> definitions.Content:
    """The content of a tokenizer.json from vocabulary files."""
    older = _json_object(files, ADDED, where)
    parts = Parts(
        config=config,
        tokens={**convention.tokens, **said},
        added=definitions.added_tokens(config, older),
        frame=convention.frame,
    )
    assert convention.build is not None
    return convention.build([files[name] for name in convention.files], parts)


def _sentencepiece(
    model: bytes,
    convention: Convention | None,
    config: Mapping[str, Any],
    said: Mapping[str, str],
    stops: list[int],
    template: str | None,
) -> Tokenizer:
    """A tokenizer.model with nothing around it but begin and end of a document."""
    codec = SentencePieceCodec(model)
    beyond = sorted(i for i in map(int, config.get("added_tokens_decoder", {})) if i >= codec.vocab_size)
    if beyond:
        raise TokenizerError(
            f"{CONFIG} adds tokens from id {beyond[0]} on to tokenizer.model: tokenizer.json is needed"
        )
    vocabulary = {text: i for i, text in enumerate(codec.proto.texts)}
    usual = {"bos": "<s>", "eos": "</s>"} if convention is None else convention.tokens
    return assemble(
        codec,
        vocabulary,
        _named(usual, said, stops, vocabulary),
        frame=Frame.plain(),
        stop=stops,
        add_bos=bool(config.get("add_bos_token", True)),
        add_eos=bool(config.get("add_eos_token", False)),
        chat_template=template,
    )


def _named(
    usual: Mapping[str, str], said: Mapping[str, str], stops: list[int], vocabulary: Mapping[str, int]
) -> dict[str, str | int]:
    """What is special: as the folder says; the first end of an answer; as is usual, if it is there."""
    ends = {"eos": stops[0]} if stops else {}
    return {**{role: text for role, text in usual.items() if text in vocabulary}, **ends, **said}


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
