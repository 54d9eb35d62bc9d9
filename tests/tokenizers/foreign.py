"""Templates of the forms that published models use, written anew, over a vocabulary trained here."""

from __future__ import annotations

from typing import Any

from hllm_jax.tokenizers import Tokenizer, TokenizerConfig, from_tokenizer_json, train_tokenizer

# Plain ChatML that inserts a system message of its own and marks no spans (SmolLM2, Qwen2).
CHATML_DEFAULT = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe helpful<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Headers, trimmed content, a BOS of its own (Llama 3).
HEADERS = (
    "{% for message in messages %}"
    "{% set text = '<|start|>' + message.role + '<|header|>\n\n' + message.content | trim + '<|eot|>' %}"
    "{{ bos_token + text if loop.index0 == 0 else text }}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|header|>\n\n{% endif %}"
)
# Role tokens put together from pieces, which swallow the blanks after them (Phi 3).
ROLE_TOKENS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# No turn markers for the assistant but the end of the document (Mistral).
INSTRUCTIONS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST]{{ message['content'] }}[/INST]{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Thoughts of earlier answers are taken out when more follows (Qwen 3).
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML_DEFAULT,
    "headers": HEADERS,
    "role tokens": ROLE_TOKENS,
    "instructions": INSTRUCTIONS,
}
SPECIAL = (
    "<|start|>",
    "<|header|>",
    "<|eot|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "[INST]",
    "[/INST]",
    "<s>",
)


def foreign_json(corpus: list[str]) -> str:
    """A `tokenizer.json` with the control tokens of all the templates; role tokens swallow blanks."""
    import json

    config = TokenizerConfig(kind="byte_bpe", vocab_size=400, special_tokens=SPECIAL)
    content: dict[str, Any] = json.loads(train_tokenizer(corpus, config).codec.files()["tokenizer.json"])
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] in ("<|user|>", "<|assistant|>")
    return json.dumps(content, ensure_ascii=False)


def foreign(definition: str, template: str) -> Tokenizer:
    """A foreign tokenizer whose pad is its end."""
    return from_tokenizer_json(definition, bos="<s>", eos="<|eos|>", chat_template=template)
