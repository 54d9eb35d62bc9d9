"""reStructuredText as plain text: paragraphs filled, markup taken out, code and tables line by line.

Written for the Linux kernel's documents (Docutils' syntax with Sphinx' directives). Nothing is included or
executed: what a directive would bring from elsewhere is missing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hllm_jax.data.markup.filling import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

ADORNMENT = re.compile(r"([^\w\s])\1{2,}|[=~^-]{2}")
DIRECTIVE = re.compile(r"\.\. +(?:\|[^|]+\| +)?([\w:.-]+?) ?::(?: +(.*))?$")
FOOTNOTE = re.compile(r"\.\. +(\[[^\]]+\]) *(.*)")
EXPLICIT = re.compile(r"\.\.( |$)|__ ")
SIMPLE_BORDER = re.compile(r"=+( +=+)+|-+( +-+)+")
GRID_BORDER = re.compile(r"\+[-=+]*[-=]\+[-=+]*")
OPTION = re.compile(r":[\w-]+:( |$)")
CELL = re.compile(r"(\* |  )(?:- ?|(?=\.\. ))")
SPAN = re.compile(r":[cr]span:`\d+` *")
BULLET = re.compile(r"(?:[-*+•]|\(?(?:\d{1,3}|[a-zA-Z#]|[ivx]+)[.)]) +(?=\S)")

#: Directives whose body is text of its own, shown line by line.
LITERAL = {"code-block", "code", "parsed-literal", "sourcecode", "math", "csv-table"}
#: Directives whose body is a list of lists.
LIST_TABLES = {"list-table", "flat-table"}
#: Directives that bring something from elsewhere, or that only steer a formatter.
DROPPED = {
    *("kernel-doc", "include", "kernel-include", "literalinclude", "maintainers-include", "kernel-feat"),
    *("kernel-abi", "toctree", "contents", "raw", "only", "ifconfig", "tabularcolumns", "cssclass", "class"),
    *("image", "figure", "kernel-image", "kernel-figure", "kernel-render", "highlight", "sectnum", "index"),
    *("c:namespace", "title", "meta", "role", "default-role", "replace", "unicode"),
}

CODE = re.compile(r"(``.+?``)")
INLINE = (
    (re.compile(r":[a-zA-Z][\w:.+-]*:`~?([^`<]+?)(?: *<[^`>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?) *<([^`>]+)>`_{1,2}"), r"\1 <\2>"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*\*(?=\S)(.+?)(?<=[^\s\\])\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*/\\])\*(?=[^\s*)])([^*]*?[^\s*(\\])\*(?![\w*])"), r"\1"),
    (re.compile(r"\\ "), ""),
    (re.compile(r"\\([*`_|\\<>:])"), r"\1"),
)


def plain_text(source: str) -> str:
    """The text of a document: blocks with an empty line between them.

    Args:
        source: decoded; tabs are 8 columns.
    """
    lines = [line.expandtabs(8).rstrip() for line in source.lstrip("\ufeff").splitlines()]
    written: list[str] = []
    write_blocks(lines, written, "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(written)).strip("\n")


def write_blocks(lines: Sequence[str], written: list[str], margin: str) -> None:
    """Write the blocks of some lines, with `margin` before each line."""
    at = 0
    while at < len(lines):
        line = lines[at]
        text = line.lstrip()
        if not text:
            if written and written[-1]:
                written.append("")
            at += 1
        elif EXPLICIT.match(text):
            at = write_explicit(lines, at, written, margin)
        elif (heading := heading_at(lines, at)) is not None:
            title, at = heading
            written += ["", unmarked(title), ""]
        elif SIMPLE_BORDER.fullmatch(text) or GRID_BORDER.fullmatch(text):
            at = write_table(lines, at, written, margin)
        elif ADORNMENT.fullmatch(text):
            at += 1  # a transition between paragraphs
        else:
            at = write_paragraph(lines, at, written, margin)


def indent(line: str) -> int:
    """Columns before the text."""
    return len(line) - len(line.lstrip())


def body_at(lines: Sequence[str], at: int, column: int) -> tuple[list[str], int]:
    """The lines from `at` that are indented deeper than `column`, dedented, and where they end."""
    end = at
    while end < len(lines) and (not lines[end] or indent(lines[end]) > column):
        end += 1
    body = list(lines[at:end])
    while body and not body[-1]:
        body.pop()
    depth = min((indent(line) for line in body if line), default=0)
    return [line[depth:] for line in body], end


def heading_at(lines: Sequence[str], at: int) -> tuple[str, int] | None:
    """A title with its adornment, and the line behind it; None where there is none."""

    def line(number: int) -> str:
        return lines[number] if number < len(lines) else ""

    if ADORNMENT.fullmatch(line(at)) and line(at + 1) and line(at + 2).strip() == line(at).strip():
        return line(at + 1).strip(), at + 3
    title, below = line(at), line(at + 1)
    if title and not title[0].isspace() and ADORNMENT.fullmatch(below) and below != "::":
        return title, at + 2
    return None


def write_explicit(lines: Sequence[str], at: int, written: list[str], margin: str) -> int:
    """A directive, a footnote, or what readers do not see: comments, targets, substitutions."""
    text, column = lines[at].lstrip(), indent(lines[at])
    body, end = body_at(lines, at + 1, column)
    if found := FOOTNOTE.match(text):
        write_blocks([f"{found[1]} {' '.join([found[2], *body])}".rstrip(), ""], written, margin)
    elif found := DIRECTIVE.match(text):
        name, argument = found[1].lower(), (found[2] or "").strip()
        while body and OPTION.match(body[0]):
            body.pop(0)
        if name in LITERAL:
            write_literal(body, written, margin)
        elif name in LIST_TABLES:
            write_list_table(argument, body, written, margin)
        elif name not in DROPPED:
            # An argument is a title, a signature, or the first line of the text.
            rest = [argument, *body] if argument else body
            write_blocks([*rest, ""], written, margin)
    return end


def write_literal(body: Sequence[str], written: list[str], margin: str) -> None:
    """Code and the like as it stands, set in."""
    written += ["", *(f"{margin}    {line}" if line else "" for line in body), ""]


def write_list_table(title: str, body: Sequence[str], written: list[str], margin: str) -> None:
    """A table written as a list of rows (`* - cell`) that are lists of cells (`  - cell`)."""
    rows: list[list[str]] = []
    for line in body:
        cell = CELL.match(line)
        text = SPAN.sub("", line[cell.end() :] if cell else line.strip())
        text = "" if EXPLICIT.match(text) else unmarked(text.strip())
        if cell and cell[1] == "* ":
            rows.append([text])
        elif cell and rows:
            rows[-1].append(text)
        elif text and rows:
            rows[-1][-1] = joined(rows[-1][-1], text)
    written += [f"{margin}{unmarked(title)}"] if title else []
    written += [margin + "  ".join(filter(None, row)) for row in rows if any(row)]
    written.append("")


def write_table(lines: Sequence[str], at: int, written: list[str], margin: str) -> int:
    """The rows of a table, without its rules."""
    grid = lines[at].lstrip().startswith("+")
    borders = 0
    while at < len(lines):
        text = lines[at].strip()
        if grid and not text.startswith(("+", "|")):
            break
        if not grid and borders >= 2 and not text:
            break
        at += 1
        if SIMPLE_BORDER.fullmatch(text) or GRID_BORDER.fullmatch(text):
            borders += text[0] != "-"
            # The last rule of a simple table is followed by an empty line or nothing.
            continue
        if not text:
            continue
        cells = text.strip("|").split("|") if grid else re.split(r" {2,}", text)
        row = "  ".join(unmarked(cell.strip()) for cell in cells if cell.strip())
        if row:
            written.append(margin + row)
    written.append("")
    return at


def write_paragraph(lines: Sequence[str], at: int, written: list[str], margin: str) -> int:
    """A paragraph, item, term or field: the lines that stand at its column, joined; then its code, if any."""
    first = lines[at]
    column = indent(first)
    lead = first[:column]
    mark = BULLET.match(first[column:])
    text_column = column + (mark.end() if mark else 0)
    text = first.strip()
    at += 1
    is_field = OPTION.match(text) is not None
    while at < len(lines) and (line := lines[at]):
        continues = indent(line) > column if is_field else indent(line) == text_column
        starts_anew = (
            BULLET.match(line.lstrip()) or OPTION.match(line.lstrip()) or line.lstrip().startswith("| ")
        )
        if not continues or starts_anew or EXPLICIT.match(line.lstrip()) or heading_at(lines, at):
            break
        text = joined(text, line.strip())
        at += 1
    code = text.endswith("::")
    if code:
        text = text[:-1] if text != "::" and not text.endswith(" ::") else text[:-2].rstrip()
    if text:
        shown = text.removeprefix("| ") if text.startswith("| ") else text
        if is_field:
            shown = re.sub(r"^:([^:]+):", r"\1:", shown)
        written.append(f"{margin}{lead}{unmarked(shown)}")
    if code:
        begin = at
        while begin < len(lines) and not lines[begin]:
            begin += 1
        if begin < len(lines) and indent(lines[begin]) > column:
            body, at = body_at(lines, at, column)
            write_literal([line for n, line in enumerate(body) if line or n], written, margin + lead)
    return at


def unmarked(text: str) -> str:
    """Text without inline markup; the address of a link stays behind its words, code is as it stands."""
    parts = CODE.split(text)
    for number, part in enumerate(parts):
        if number % 2:
            parts[number] = part[2:-2]
        else:
            for pattern, plain in INLINE:
                parts[number] = pattern.sub(plain, parts[number])
    return "".join(parts)
