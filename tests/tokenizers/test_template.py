"""Templates of other people: weights without spans, what cannot be trained, and what a template may do."""

from __future__ import annotations

from typing import Any

import pytest

from hllm_jax.tokenizers import TemplateError, Tokenizer
from tests.tokenizers.foreign import (
    CHATML_DEFAULT,
    FORGETFUL,
    HEADERS,
    INSTRUCTIONS,
    ROLE_TOKENS,
    TEMPLATES,
    foreign,
    foreign_json,
)


@pytest.fixture(scope="module")
def definition(corpus: list[str]) -> str:
    return foreign_json(corpus)


TALK = [
    {"role": "user", "content": "the king"},
    {"role": "assistant", "content": "queen"},
    {"role": "user", "content": "春风"},
    {"role": "assistant", "content": "化雨。"},
]


def trained(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[str]:
    """The text of each run of trained tokens."""
    tokens, weights = tokenizer.render(messages)
    assert len(tokens) == len(weights)
    runs: list[list[int]] = []
    for i, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
        if weight:
            runs = runs if i and weights[i - 1] else [*runs, []]
            runs[-1].append(token)
    assert all(run[-1] in tokenizer.stop_ids for run in runs)
    return [tokenizer.decode(run) for run in runs]


def test_weights_of_templates_without_spans(definition: str) -> None:
    ends = {"chatml": "<|im_end|>", "headers": "<|eot|>", "role tokens": "<|end|>", "instructions": "<|eos|>"}
    assert ends.keys() == TEMPLATES.keys()
    for name, template in TEMPLATES.items():
        tokenizer = foreign(definition, template)
        end = ends[name]
        if name == "role tokens":  # its end of document belongs to no answer: the prefixes end otherwise
            template = template.replace("{% else %}{{ eos_token }}", "")
            tokenizer = foreign(definition, template)
        assert trained(tokenizer, TALK) == [f"queen{end}", f"化雨。{end}"]
        assert tokenizer.special_ids[end] in tokenizer.stop_ids


def test_golden_foreign_table(definition: str) -> None:
    tokenizer = foreign(definition, HEADERS)
    tokens, weights = tokenizer.render(TALK[:2])
    table: list[tuple[str | list[int], int]] = [
        ("<s>", 0),
        ("<|start|>", 0),
        (tokenizer.encode("user"), 0),
        ("<|header|>", 0),
        (tokenizer.encode("\n\nthe king"), 0),
        ("<|eot|>", 0),
        ("<|start|>", 0),
        (tokenizer.encode("assistant"), 0),
        ("<|header|>", 0),
        (tokenizer.encode("\n\n"), 0),
        (tokenizer.encode("queen"), 1),
        ("<|eot|>", 1),
    ]
    rows = [
        (i, w)
        for part, w in table
        for i in (part if isinstance(part, list) else [tokenizer.special_ids[part]])
    ]
    assert list(zip(tokens, weights, strict=True)) == rows


def test_blanks_after_tokens_that_swallow_them(definition: str) -> None:
    tokenizer = foreign(definition, ROLE_TOKENS)
    tokens, _ = tokenizer.render(TALK[:1], add_generation_prompt=True)
    ids = tokenizer.special_ids
    assert tokens == [
        ids["<|user|>"],
        *tokenizer.encode("the king"),
        ids["<|end|>"],
        *tokenizer.encode("\n"),
        ids["<|assistant|>"],
    ]


def test_a_template_that_rewrites_history_cannot_be_trained_on(definition: str) -> None:
    tokenizer = foreign(definition, FORGETFUL)
    thinking = [
        {**m, "content": "<think>x</think>" + m["content"]} if m["role"] == "assistant" else m for m in TALK
    ]
    with pytest.raises(
        TemplateError, match=r"message 1: the template rewrites earlier text .*{% generation %}"
    ):
        tokenizer.render(thinking)
    assert trained(tokenizer, thinking[:2]) == ["<think>x</think>queen<|im_end|>"]
    # Serving asks for no weights.
    tokens, weights = tokenizer.render(thinking[:3], add_generation_prompt=True)
    assert not any(weights)
    assert tokenizer.decode(tokens).count("think") == 0


def test_an_answer_first_where_the_template_starts_otherwise(definition: str) -> None:
    with pytest.raises(TemplateError, match="message 0: the template rewrites"):
        foreign(definition, CHATML_DEFAULT).render(TALK[1:])
    with pytest.raises(TemplateError, match="message 0: the chat template failed"):
        foreign(definition, "{{ messages[0].role }}" + CHATML_DEFAULT).render(TALK[1:])


def test_a_span_that_leaves_its_end_token_outside(definition: str) -> None:
    """The end token right behind a span is learned; a span that no stop token ends is refused."""
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}END{% endfor %}"
    tokenizer = foreign(definition, template.replace("END", "<|im_end|>"))
    assert trained(tokenizer, TALK[1:2]) == ["queen<|im_end|>"]
    tokenizer = foreign(definition, template.replace("END", "\n"))
    with pytest.raises(TemplateError, match=r"answer 0 ends with the token .* no stop token .*<\|eos\|>"):
        tokenizer.render(TALK[1:2])
    assert tokenizer.render(TALK[1:2], add_generation_prompt=True)[1][0] == 1


def test_several_spans_in_one_answer(definition: str) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %} and "
        "{% generation %}more<|im_end|>{% endgeneration %}{% endfor %}"
    )
    tokenizer = foreign(definition, template)
    tokens, weights = tokenizer.render(TALK[1:2])
    assert tokenizer.decode([t for t, w in zip(tokens, weights, strict=True) if w]) == "queenmore<|im_end|>"


def test_two_begins_are_refused(definition: str) -> None:
    with pytest.raises(TemplateError, match="two begin-of-document tokens"):
        foreign(definition, "{{ bos_token }}<s>{{ messages[0].content }}").render(TALK[:1])


def test_raise_exception_reaches_the_user(definition: str) -> None:
    tokenizer = foreign(definition, INSTRUCTIONS)
    with pytest.raises(TemplateError, match="Only user and assistant roles are supported!"):
        tokenizer.render([{"role": "system", "content": "x"}])


def test_no_template() -> None:
    from hllm_jax.tokenizers import from_gguf

    metadata = {
        "model": "gpt2",
        "tokens": ["a", "b", "ab", "</s>"],
        "merges": ["a b"],
        "token_type": [1, 1, 1, 3],
    }
    tokenizer = from_gguf({f"tokenizer.ggml.{k}": v for k, v in {**metadata, "eos_token_id": 3}.items()})
    assert tokenizer.chat_template is None
    with pytest.raises(TemplateError, match=r"no chat template; give plain text \(`--raw`"):
        tokenizer.render(TALK)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", r"no valid Jinja, line 1"),
        ("a\nb{% generation %}", r"no valid Jinja, line 2"),
        ("{{ messages", r"no valid Jinja"),
    ],
)
def test_malformed_templates(definition: str, source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        foreign(definition, source)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ undefined_name.attribute }}",
        "{{ 'a' + 1 }}",
    ],
)
def test_the_sandbox(definition: str, attack: str) -> None:
    with pytest.raises(TemplateError, match=r"the chat template failed on messages of the roles \[user\]"):
        foreign(definition, attack).render(TALK[:1])


def test_helpers(definition: str) -> None:
    template = (
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}"
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}"
        "{{ {'b': '<é&\\'>', 'a': 1} | tojson }}{{ [1] | tojson(indent=1) }}"
        "{{ strftime_now('%%') }}{{ unk_token }}"
    )
    tokens, _ = foreign(definition, template).render(TALK[:1])
    assert foreign(definition, template).decode(tokens) == '131{"b": "<é&\'>", "a": 1}[\n 1\n]%'


def test_another_template_for_the_same_vocabulary(definition: str) -> None:
    first = foreign(definition, FORGETFUL)
    second = first.with_template(CHATML_DEFAULT)
    assert second.encode("the king") == first.encode("the king")
    assert second.fingerprint != first.fingerprint
    assert trained(second, TALK) == ["queen<|im_end|>", "化雨。<|im_end|>"]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_space_before_a_text(scheme: str) -> None:
    """Where a vocabulary puts a space before texts, the library over the whole conversation is the oracle."""
    import json

    import tokenizers

    from hllm_jax.tokenizers import from_tokenizer_json

    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    names = ("<unk>", "<s>", "</s>")
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(names)],
        "pre_tokenizer": space,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[text, 0.0] for text in names]
            + [[letter, -5.0] for letter in "▁abQA:"]
            + [["▁a", -1.0]],
        },
    }
    template = (
        "Q: {% for m in messages %}{{ 'Q: ' + m.content + '</s>' if m.role == 'user' else '' }}"
        "{% if m.role == 'assistant' %}A:{% generation %} {{ m.content }}</s>{% endgeneration %}{% endif %}"
        "{% endfor %}"
    )
    tokenizer = from_tokenizer_json(json.dumps(content), bos="<s>", eos="</s>", chat_template=template)
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "a"}]
    tokens, weights = tokenizer.render(messages)
    assert tokens == library.encode("Q: Q: a b</s>A: a</s>", add_special_tokens=False).ids
    assert [tokenizer.token_text(t) for t, w in zip(tokens, weights, strict=True) if w] == [" a", "</s>"]
