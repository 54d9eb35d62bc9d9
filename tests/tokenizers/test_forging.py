"""No text of a user becomes a special token, through no template; and it arrives unchanged."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hllm_jax.tokenizers import Tokenizer
from tests.tokenizers.foreign import SPECIAL, TEMPLATES, foreign, foreign_json

OWN = ("<|pad|>", "<|unk|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
CODES = "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4"


def nasty(chance: random.Random) -> str:
    """Special tokens whole, cut, nested and doubled, escape codes, template syntax."""
    parts: list[str] = []
    for _ in range(chance.randrange(1, 6)):
        token = chance.choice(OWN + SPECIAL)
        cut = chance.randrange(len(token) + 1)
        choices = (
            token,
            token[:cut],
            token[cut:],
            token[:cut] + token + token[cut:],
            token[:cut] + chance.choice(CODES) + token[cut:],
            "".join(chance.choices(CODES, k=2)),
            "{% generation %}{{ bos_token }}",
            "assistant\n",
            chance.choice("a▁ \0\n"),
        )
        parts.append(chance.choice(choices))
    return "".join(parts)


def special_sequence(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    special = set(tokenizer.special_ids.values())
    return [token for token in tokens if token in special]


def test_own_template(tokenizer: Tokenizer) -> None:
    chance = random.Random(3)
    for _ in range(400):
        texts = [nasty(chance) for _ in range(6)]
        results = []
        for system, user, reply, name, argument, result in (texts, ["x"] * 6):
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": system},
                {"role": "user", "content": [{"type": "text", "text": user}]},
                {
                    "role": "assistant",
                    "content": reply,
                    "tool_calls": [{"name": name, "arguments": {argument: [argument]}}],
                },
                {"role": "tool", "content": result, "name": name},
                {"role": "assistant", "content": reply},
            ]
            tools = [{"name": name, "description": argument, "parameters": {argument: {"enum": [argument]}}}]
            results.append((messages, tokenizer.render(messages, tools)))
        (messages, (tokens, weights)), (_, (plain, _)) = results
        assert special_sequence(tokenizer, tokens) == special_sequence(tokenizer, plain)
        # The last answer arrives exactly, and exactly it is trained.
        reply = tokenizer.encode(messages[4]["content"])
        end = len(tokens) - len(tokenizer.encode("\n"))
        assert tokens[end - 1 - len(reply) : end - 1] == reply
        assert weights[end - 1 - len(reply) : end] == [1] * (len(reply) + 1)
        text = tokenizer.decode(tokens)
        assert f"<|im_start|>user\n{messages[1]['content'][0]['text']}<|im_end|>\n" in text
        assert f"<|im_start|>tool\n{messages[3]['content']}<|im_end|>\n" in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_foreign_templates(name: str, corpus: list[str]) -> None:
    tokenizer = foreign(foreign_json(corpus), TEMPLATES[name])
    chance = random.Random(4)
    for _ in range(400):
        texts = [nasty(chance) for _ in range(3)]
        results = []
        for first, reply, second in (texts, ["x"] * 3):
            messages = [
                {"role": "user", "content": first},
                {"role": "assistant", "content": reply},
                {"role": "user", "content": second},
            ]
            results.append(tokenizer.render(messages, add_generation_prompt=True)[0])
        assert special_sequence(tokenizer, results[0]) == special_sequence(tokenizer, results[1])
        text = tokenizer.decode(results[0])
        swallowed = name in ("headers", "role tokens")  # these trim the content themselves
        assert all((t.strip() if swallowed else t) in text for t in texts)


def test_spellings_put_together_from_a_template_and_a_text(corpus: list[str]) -> None:
    """`<|` written by the template and `end|>` by the user, and the other way round."""
    definition = foreign_json(corpus)
    for around in (
        "{{ messages[0].content }}|>",
        "<|{{ messages[0].content }}",
        "<|{{ messages[0].content }}|>",
    ):
        tokenizer = foreign(definition, around)
        for content in ("<|end", "end|>", "end", "|end", "<|im_end", "im_end|>", "user"):
            tokens, _ = tokenizer.render([{"role": "user", "content": content}])
            assert special_sequence(tokenizer, tokens) == []
            assert tokenizer.decode(tokens) == around.replace("{{ messages[0].content }}", content)


def test_a_vocabulary_whose_pieces_spell_special_tokens() -> None:
    """In a Unigram model the control tokens are pieces too, and the library finds them in a text."""
    import json

    from hllm_jax.tokenizers import from_tokenizer_json

    letters = sorted(set("<s>/unkabc▁"))
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *[[letter, -5.0] for letter in letters]]
    added = [
        {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    }
    tokenizer = from_tokenizer_json(json.dumps(content), bos="<s>", eos="</s>")
    for text in ("a</s>b<s>", "</s>", "<s></s></s>c", "<</s>s>"):
        assert special_sequence(tokenizer, tokenizer.encode(text)) == []
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text, "a"])[0] == tokenizer.encode(text)
