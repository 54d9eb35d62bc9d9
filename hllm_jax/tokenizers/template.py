"""Chat templates: Jinja in a sandbox, whose output still tells the user's text and the trained spans.

The output of a template is one string in which special tokens stand by their spelling. Two facts would be
lost in it: whether a spelling was written by the template or by a user, and which parts are the assistant's.
Both are kept by escape codes that begin with U+FDD0, a code point reserved by Unicode for such internal use:

    U+FDD0 U+FDD1   the character U+FDD0 itself, as found in a user's text
    U+FDD0 U+FDD2   nothing; breaks the spelling of a special token in a user's text, so that it is none
    U+FDD0 U+FDD3   here `{% generation %}` begins
    U+FDD0 U+FDD4   here it ends

The codes are put into every string of messages and tools before rendering, and undone when ordinary text is
encoded, so that a user's text survives exactly, the four characters above included.
"""

from __future__ import annotations

import datetime
import enum
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from hllm_jax.tokenizers.errors import TemplateError

if TYPE_CHECKING:
    from jinja2.parser import Parser

    from hllm_jax.tokenizers.codec import SpecialToken

CODE = "\ufdd0"
ITSELF, BREAK, BEGIN, END = (CODE + mark for mark in "\ufdd1\ufdd2\ufdd3\ufdd4")


class Mark(enum.Enum):
    """Where a trained span begins and ends."""

    BEGIN = BEGIN
    END = END


# Strings that a user chooses freely and a template sets beside its own text.
FREE_TEXT = ("content", "reasoning_content", "text")


class Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block becomes a call that sets the two marks around its output."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """The output of the block between the marks."""
        return BEGIN + caller() + END


class ChatTemplate:
    """A chat template and the special tokens that it may write.

    Args:
        source: the Jinja text.
        special: the control tokens whose spellings count in the output.
        names: what the template sees as `bos_token`, `eos_token`, `pad_token`, ….

    Raises:
        TemplateError: the source is no valid Jinja.
    """

    def __init__(self, source: str, special: Sequence[SpecialToken], names: Mapping[str, str]) -> None:
        environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template is no valid Jinja, line {error.lineno}: {error.message}"
            ) from None
        self.has_spans = any(
            isinstance(call.node, nodes.ExtensionAttribute) and call.node.identifier == Generation.identifier
            for call in tree.find_all(nodes.Call)
        )
        self._names = dict(names)
        # A control token spelled by one character would make that character impossible in a text.
        self._special = {token.text: token for token in special if len(token.text) > 1}
        texts = sorted(self._special, key=len, reverse=True)
        self._longest = len(texts[0]) if texts else 0
        self._starts = {text[:k] for text in texts for k in range(1, len(text))}
        self._inner = "\0".join(text[1:] for text in texts)
        self._ends = {text[k:] for text in texts for k in range(1, len(text))}
        spelled = "|".join(map(re.escape, texts)) or r"(?!)"
        self._breakable = re.compile(f"(?=(?:{spelled}))(.)", re.DOTALL)
        patterns = [
            (r"\s*" if self._special[t].lstrip else "")
            + f"(?:{re.escape(t)})"
            + (r"\s*" if self._special[t].rstrip else "")
            for t in texts
        ]
        self._separator = re.compile("(" + "|".join([BEGIN, END, *patterns]) + ")")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        """Render already escaped messages; the result holds the escape codes of the module docstring.

        Raises:
            TemplateError: what the template said through `raise_exception`, or why it failed.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except TemplateError:
            raise
        except Exception as error:  # a template is a program of somebody else: it can fail in any way
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateError(
                f"the chat template failed on messages of the roles [{roles}]: {error}"
            ) from error

    def escape(self, value: Any, key: str = "") -> Any:
        """A copy of a JSON value in which no string spells a special token or holds a bare escape code."""
        if isinstance(value, str):
            text = value.replace(CODE, ITSELF)
            text = self._breakable.sub(rf"\1{BREAK}", text)
            return self._sealed(text) if key in FREE_TEXT else text
        if isinstance(value, Mapping):
            return {self.escape(k) if isinstance(k, str) else k: self.escape(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.escape(item) for item in value]
        return value

    def _sealed(self, text: str) -> str:
        """Breaks at the ends of a text that would spell a special token together with the template's text."""
        ends = range(1, min(self._longest, len(text) + 1))
        if any(text[-k:] in self._starts for k in ends):
            text += BREAK
        if any(text[:k] in self._ends for k in ends) or (
            text and len(text) < self._longest and text in self._inner
        ):
            text = BREAK + text
        return text

    def split(self, rendered: str) -> list[str | SpecialToken | Mark]:
        """Ordinary texts (codes undone), special tokens and span marks, in their order."""
        parts: list[str | SpecialToken | Mark] = []
        for k, part in enumerate(self._separator.split(rendered)):
            if k % 2:
                parts.append(Mark(part) if part in (BEGIN, END) else self._token(part))
            elif part:
                parts.append(part.replace(BREAK, "").replace(ITSELF, CODE))
        return parts

    def after_last(self, rendered: str, ids: Container[int]) -> int:
        """The position behind the last special token of `ids` in a rendered text, 0 if there is none."""
        end = 0
        for match in self._separator.finditer(rendered):
            if match[0] not in (BEGIN, END) and self._token(match[0]).id in ids:
                end = match.end()
        return end

    def _token(self, spelling: str) -> SpecialToken:
        return self._special.get(spelling) or self._special[spelling.strip()]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes < > & for HTML, which models have not been trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> str:
    raise TemplateError(f"the chat template refuses these messages: {message}")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
