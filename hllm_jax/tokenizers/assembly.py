"""From a codec and the names of special tokens to a tokenizer."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from hllm_jax.tokenizers.errors import TokenizerError
from hllm_jax.tokenizers.frame import Frame
from hllm_jax.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hllm_jax.tokenizers.codec import Codec

# Control tokens that end an answer in published models, whatever their config files say or forget.
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
)

# What a control token is for where no file says it.
USUAL = {"cls": ("[CLS]",), "sep": ("[SEP]",), "mask": ("[MASK]", "<mask>", "<|mask|>")}

SENTINEL = re.compile(r"<extra_id_(\d+)>")


def sentinel_ids(special: Mapping[str, int]) -> tuple[int, ...]:
    """Ids of T5's `<extra_id_0>`, `<extra_id_1>`, … in this order, as far as they go without a gap."""
    numbered = {int(found[1]): i for text, i in special.items() if (found := SENTINEL.fullmatch(text))}
    return tuple(numbered[k] for k in itertools.takewhile(numbered.__contains__, itertools.count()))


def assemble(
    codec: Codec,
    vocabulary: Mapping[str, int],
    names: Mapping[str, str | int | None],
    *,
    frame: Frame,
    stop: Sequence[str | int] = (),
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """A tokenizer whose special tokens are given by name.

    Args:
        codec: ordinary text to ids.
        vocabulary: id of every entry that a name may mean.
        names: for bos, eos, pad, cls, sep and mask the spelling or id, None for what is not there.
        frame: what stands around a text, unless `add_bos` or `add_eos` say otherwise.
        stop: further ends of an answer.
        add_bos, add_eos: None: as the frame does.
        chat_template: Jinja text.

    Raises:
        TokenizerError: a name that is not in the vocabulary, or no end of a document.
    """
    special = {token.text: token.id for token in codec.special}

    def find(name: str, token: str | int | None) -> int | None:
        if token is None or isinstance(token, int):
            return token
        found = special.get(token, vocabulary.get(token))
        if found is None:
            raise TokenizerError(
                f"the {name} token {token!r} is not in the vocabulary of {codec.vocab_size} entries"
            )
        return found

    ids = {name: find(name, names.get(name)) for name in ("bos", "eos", "pad", "cls", "sep", "mask")}
    for name, usual in USUAL.items():
        if ids[name] is None:
            ids[name] = next((special[text] for text in usual if text in special), None)
    stops = [found for token in stop if (found := find("stop", token)) is not None]
    bos, eos = ids["bos"], ids["eos"]
    eos = eos if eos is not None else stops[0] if stops else ids["sep"]
    if eos is None:
        raise TokenizerError(
            "no end-of-document token is known: give `eos`, or an `eos_token` in tokenizer_config.json"
        )
    if add_bos is not None or add_eos is not None:
        frame = Frame.plain(bos if add_bos else None, eos if add_eos else None)
    return Tokenizer(
        codec.framed(frame),
        bos_id=bos,
        eos_id=eos,
        pad_id=eos if ids["pad"] is None else ids["pad"],
        cls_id=ids["cls"],
        sep_id=ids["sep"],
        mask_id=ids["mask"],
        sentinel_ids=sentinel_ids(special),
        stop_ids=[*stops, *(special[name] for name in ENDS if name in special)],
        add_bos=bos is not None and frame.begins_with == bos,
        frame=frame,
        chat_template=chat_template,
    )
