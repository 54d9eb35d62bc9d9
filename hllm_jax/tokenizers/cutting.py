"""How byte-level BPE models cut a text into words, by the names that llama.cpp gave to the ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hllm_jax.tokenizers.definitions import GPT2, LLAMA3, QWEN2
from hllm_jax.tokenizers.spelling import steps_of

DIGIT = r"\p{N}"
# Words by case, as in Mistral's Tekken and OpenAI's o200k vocabularies.
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+ENDING|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*ENDING"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = CASED.replace("ENDING", "").replace("DIGITS", r"\p{N}")
GPT4O = CASED.replace("ENDING", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")


@dataclasses.dataclass(frozen=True)
class Cutting:
    """A way to cut a text.

    Attributes:
        patterns: regular expressions, one after the other; matches and what is between them are words.
        nfc: the text is brought to Unicode NFC before (which llama.cpp leaves out).
        whole: a word that is an entry becomes it without regard to the merges.
        add_bos: texts begin with bos where the file does not say.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    add_bos: bool = False


BY_GPT2, BY_DIGITS = Cutting((GPT2,)), Cutting((DIGIT, GPT2))
BY_LLAMA3 = Cutting((LLAMA3,), whole=True, add_bos=True)
BY_QWEN2 = Cutting((QWEN2,), nfc=True)

# The first name of each way is the one written.
CUTTINGS: dict[str, Cutting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "modern-bert"), BY_GPT2),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat"), BY_GPT2),
    **dict.fromkeys(("roberta-bpe", "jina-v1-en", "jina-v2-code"), BY_GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), BY_DIGITS),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b"), BY_DIGITS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), BY_LLAMA3
    ),
    "glm4": Cutting((LLAMA3,), whole=True),
    **dict.fromkeys(("chatglm-bpe", "dbrx", "smaug-bpe"), Cutting((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "hunyuan"), BY_QWEN2),
    "tekken": Cutting((TEKKEN,), add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cutting((GPT4O,))),
    # What llama.cpp does where a file does not say; few vocabularies were trained this way.
    "default": Cutting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
# Those whose texts stand between a first token and separators.
BETWEEN_SEPARATORS = ("roberta-bpe", "jina-v1-en", "jina-v2-code")


def cutting_of(content: Mapping[str, Any]) -> Cutting | None:
    """The way in which a byte-level tokenizer.json cuts, None if it is not one that has a name here."""
    patterns: list[str] = []
    for step in steps_of(content.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex", ""))
        elif kind == "Digits" and step.get("individual_digits"):
            patterns.append(DIGIT)
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            return None
    normalizers = [step.get("type") for step in steps_of(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        return None
    whole = bool(content["model"].get("ignore_merges"))
    for known in dict.fromkeys(CUTTINGS.values()):
        if (known.patterns, known.nfc, known.whole) == (tuple(patterns), bool(normalizers), whole):
            return known
    return None
