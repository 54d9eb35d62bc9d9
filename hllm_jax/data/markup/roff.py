"""Manual pages as plain text: what pages use of roff(7), man(7), mdoc(7) and tbl(1).

Fonts, sizes and spacing go; headings, paragraphs, tags and tables stay, each on its own lines. Filled lines
are joined as a formatter would, without a space between two characters of a script that writes none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hllm_jax.data.markup import mdoc
from hllm_jax.data.markup.filling import joined

if TYPE_CHECKING:
    from collections.abc import Callable

ESCAPE = re.compile(
    r"""\\(?:
      f(?:\(..|\[[^\]]*\]|.)                                 # font
    | s[-+]?(?:\(..|\[[^\]]*\]|'[^']*'|[123]\d|\d)           # size
    | [mMFgkYV](?:\(..|\[[^\]]*\]|.)                         # colour, family, registers and positions
    | n[-+]?(?:\(..|\[[^\]]*\]|.)
    | [hvwDlLxXZRbBACSHN]'[^']*'                             # motions, widths, drawings
    | \*(?:\((?P<string2>..)|\[(?P<stringn>[^\]]*)\]|(?P<string1>.))
    | o'(?P<over>[^']*)'
    | \((?P<glyph2>..)
    | \[(?P<glyphn>[^\]]*)\]
    | (?P<one>.)
    | $)""",
    re.VERBOSE,
)
COMMENT = re.compile(r'(?<!\\)((?:\\\\)*)\\["#].*')
REQUEST = re.compile(r"[.'][ \t]*([^\s\\]*)[ \t]*(.*)", re.DOTALL)
ARGUMENT = re.compile(r'"((?:[^"]|"")*)(?:"|$)|((?:\\ |\S)+)')
COMPARED = re.compile(r"'([^']*)'([^']*)'\s*|\"([^\"]*)\"([^\"]*)\"\s*")

SINGLE = {
    **dict.fromkeys("&|^/,%:!{}cpdurazEO)", ""),
    **dict.fromkeys(" ~0", " "),
    "t": "\t",
    "e": "\\",
}
GLYPHS = {
    **{"em": "—", "en": "–", "hy": "-", "mi": "−", "bu": "•", "co": "©", "rg": "®", "tm": "™", "de": "°"},
    **{"lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'", "dq": '"', "ga": "`", "aa": "´", "Bq": "„"},
    **{"ha": "^", "ti": "~", "rs": "\\", "ba": "|", "bv": "|", "or": "|", "sl": "/", "ul": "_", "ru": "_"},
    **{"at": "@", "sh": "#", "Do": "$", "ct": "¢", "Po": "£", "Ye": "¥", "Eu": "€", "sc": "§", "dg": "†"},
    **{"lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "Fo": "«", "Fc": "»", "fo": "‹"},
    **{"<=": "≤", ">=": "≥", "!=": "≠", "==": "≡", "~=": "≅", "+-": "±", "mu": "×", "di": "÷", "if": "∞"},
    **{"->": "→", "<-": "←", "ua": "↑", "da": "↓", "<>": "↔", "rA": "⇒", "lA": "⇐", "pl": "+", "eq": "="},
    **{"12": "½", "14": "¼", "34": "¾", "S1": "¹", "S2": "²", "S3": "³", "*m": "µ", "mc": "µ", "ss": "ß"},
    **{"sq": "□", "OK": "✓", "fm": "′", "sd": "″", "r!": "¡", "r?": "¿", "fc": "›", "dd": "‡", "ps": "¶"},
    **{"*a": "α", "*b": "β", "*g": "γ", "*d": "δ", "*e": "ε", "*l": "λ", "*p": "π", "*s": "σ", "*W": "Ω"},
    **{"ae": "æ", "AE": "Æ", "/o": "ø", "/O": "Ø", "oa": "å", "oA": "Å", ",c": "ç", ",C": "Ç", "~n": "ñ"},
    **{f"'{letter}": accented for letter, accented in zip("aeiouyAEIOUY", "áéíóúýÁÉÍÓÚÝ", strict=True)},
    **{f"`{letter}": accented for letter, accented in zip("aeiouAEIOU", "àèìòùÀÈÌÒÙ", strict=True)},
    **{f"^{letter}": accented for letter, accented in zip("aeiouAEIOU", "âêîôûÂÊÎÔÛ", strict=True)},
    **{f":{letter}": accented for letter, accented in zip("aeiouyAEIOU", "äëïöüÿÄËÏÖÜ", strict=True)},
}
STRINGS = {"lq": "“", "rq": "”", "Aq": "'", "Tm": "™", "R": "®", "S": ""}

FONTS = {"B", "I", "R", "SM", "SB", "BX", "CW"}
ALTERNATING = {"BI", "BR", "IB", "IR", "RB", "RI"}
PARAGRAPHS = {"PP", "P", "LP", "HP", "Sp", "sp", "Pp"}
NOT_FILLED = {"nf", "EX", "Vb", "DS", "CS"}
FILLED = {"fi", "EE", "Ve", "DE", "CE"}


def plain_text(page: str) -> str:
    """The text of a manual page: blocks with an empty line between them.

    Args:
        page: the source of the page, decoded.

    Returns:
        No trailing white space; "" for a page that only redirects to another (`.so`).
    """
    return Page(page).text()


class Page:
    """A page on its way to text: the source lines, where it stands, and the lines written so far."""

    def __init__(self, source: str) -> None:
        self.lines = re.sub(r"\\\n", "", source.replace("\r\n", "\n")).split("\n")
        self.at = 0
        self.written: list[str] = []
        self.line = ""
        """What is being filled."""
        self.fill = True
        self.tag = False
        """Whether the next text is the tag of a paragraph."""
        self.strings = dict(STRINGS)
        self.macros: dict[str, list[str]] = {}
        self.last_condition = True
        self.heading = False
        """Whether nothing was written since the last heading."""
        # Of mdoc:
        self.name = ""
        self.lists: list[str] = []
        self.head_is_synopsis = False

    def text(self) -> str:
        """Read to the end."""
        while self.at < len(self.lines):
            self.read(self.next())
        self.end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.written)).strip()

    def next(self) -> str:
        """The next source line."""
        self.at += 1
        return self.lines[self.at - 1]

    def read(self, line: str) -> None:
        """One source line: a request, or text."""
        line = COMMENT.sub(r"\1", line)
        found = REQUEST.fullmatch(line) if line[:1] in (".", "'") else None
        if found is None:
            self.write(self.unescaped(line))
        elif found[1]:
            self.request(found[1], found[2])

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, text: str) -> None:
        """Text in running order."""
        if not self.fill:
            self.end_line()
            self.written.append(text.rstrip())
        elif not text.strip():
            self.empty_line()
        else:
            if text[0] == " " and self.line:
                self.end_line()  # roff breaks before a line that begins with a space
            self.line = joined(self.line, text.strip())
            if self.tag:
                self.end_line()
        if text.strip():
            self.tag = self.heading = False

    def end_line(self) -> None:
        """What follows begins a new line."""
        if self.line:
            self.written.append(self.line)
            self.line = ""

    def empty_line(self) -> None:
        """What follows begins a new block, unless a heading is all that stands before it."""
        self.end_line()
        if self.written and self.written[-1] and not self.heading:
            self.written.append("")

    # -- requests -----------------------------------------------------------------------------------------

    def request(self, name: str, rest: str) -> None:
        """One request or macro with what stands behind it; unknown ones are passed over."""
        if name in self.macros:
            self.lines[self.at : self.at] = self.expanded(name, rest)
        elif name in FONTS:
            self.styled(" ".join(self.arguments(rest)))
        elif name in ALTERNATING:
            self.styled("".join(self.arguments(rest)))
        elif name in PARAGRAPHS:
            self.empty_line()
        elif name in NOT_FILLED or name in FILLED:
            self.end_line()
            self.fill = name in FILLED
        elif handler := HANDLERS.get(name):
            handler(self, rest)
        elif macro := mdoc.MACROS.get(name):
            macro(self, [found[1] if found[1] is not None else found[2] for found in ARGUMENT.finditer(rest)])

    def styled(self, text: str) -> None:
        """The text of a font macro; without any, the next line is meant, which is read as text anyway."""
        if text:
            self.write(text)

    def title(self, rest: str) -> None:
        """`.TH name section …`."""
        words = self.arguments(rest)
        if words:
            self.written.append(f"{words[0]}({words[1]})" if len(words) > 1 else words[0])
            self.empty_line()

    def section(self, rest: str) -> None:
        """`.SH` and `.SS`; without words the next line is the heading."""
        self.fill = True
        words = " ".join(self.arguments(rest))
        if not words and self.at < len(self.lines) and self.lines[self.at][:1] not in (".", "'"):
            words = self.unescaped(self.next()).strip()
        self.head(words)

    def head(self, words: str) -> None:
        """Write a heading."""
        self.empty_line()
        self.heading = False
        if words:
            self.empty_line()
            self.written.append(words)
            self.heading = True
        self.head_is_synopsis = "SYNOPSIS" in words.upper() or "概述" in words or "总览" in words

    def tagged(self, rest: str) -> None:
        """`.TP`: the next text is a tag."""
        self.empty_line()
        self.tag = True

    def another_tag(self, rest: str) -> None:
        """`.TQ`: one more tag for the same paragraph."""
        self.end_line()
        self.tag = True

    def indented(self, rest: str) -> None:
        """`.IP [tag]`: a mark stays on the line of its text, a word gets a line."""
        words = self.arguments(rest)
        if not words or not words[0].strip():
            self.empty_line()
            return
        mark = words[0].strip()
        if re.fullmatch(r"[^\w\s]|\(?\w{1,2}[.):]?", mark):
            self.end_line()
            self.line = mark
        else:
            self.empty_line()
            self.written.append(mark)

    def broken(self, rest: str) -> None:
        """`.br` and the like."""
        self.end_line()

    def link(self, rest: str) -> None:
        """`.UR address`: what is linked follows as text."""
        self.write(" ".join(self.arguments(rest)))

    def define_string(self, rest: str) -> None:
        """`.ds name value`."""
        name, _, value = rest.partition(" ")
        if name not in STRINGS:
            self.strings[name] = value.lstrip().removeprefix('"')

    def define_macro(self, rest: str) -> None:
        """`.de name`, up to `..`: run where the page calls it, unless it redefines what is known here."""
        words = rest.split()
        body: list[str] = []
        end = words[1] if len(words) > 1 else "."
        while self.at < len(self.lines) and (line := self.next()).split() != [f".{end}"]:
            body.append(line)
        known = {*FONTS, *ALTERNATING, *PARAGRAPHS, *NOT_FILLED, *FILLED, *HANDLERS}
        if words and words[0] not in known:
            self.macros[words[0]] = body

    def expanded(self, name: str, rest: str) -> list[str]:
        """The lines of a macro with its arguments put in."""
        words = [found[1] if found[1] is not None else found[2] for found in ARGUMENT.finditer(rest)]

        def argument(found: re.Match[str]) -> str:
            number = int(found[1])
            return words[number - 1] if 0 < number <= len(words) else ""

        body = self.macros.pop(name)  # so that one which calls itself ends
        lines = [re.sub(r"\\+\$(\d)", argument, line).replace("\\\\", "\\") for line in body]
        self.macros[name] = body
        return [line for line in lines if not re.match(rf"[.']\s*{re.escape(name)}\b", line)]

    def ignored(self, rest: str) -> None:
        """`.ig`, up to `..`."""
        end = rest.strip() or "."
        while self.at < len(self.lines) and self.next().strip() != f".{end}":
            pass

    def skipped(self, end: str) -> Callable[[str], None]:
        """A handler that passes over everything up to the request `end`."""

        def skip(rest: str) -> None:
            while self.at < len(self.lines) and not re.match(rf"[.']\s*{end}\b", self.next()):
                pass

        return skip

    def conditional(self, rest: str) -> None:
        """`.if` and `.ie`."""
        self.last_condition, rest = condition(rest)
        self.branch(rest, self.last_condition)

    def otherwise(self, rest: str) -> None:
        """`.el`."""
        self.branch(rest, not self.last_condition)

    def branch(self, rest: str, wanted: bool) -> None:
        """Read or pass over what a condition stands before: the rest of the line, or a block."""
        block = rest.lstrip().startswith("\\{")
        if wanted:
            rest = rest.lstrip().removeprefix("\\{")
            if rest.strip():
                self.read(rest.lstrip())
            return
        depth = rest.count("\\{") - rest.count("\\}") if block else 0
        while depth > 0 and self.at < len(self.lines):
            line = self.next()
            depth += line.count("\\{") - line.count("\\}")

    def table(self, rest: str) -> None:
        """`.TS` to `.TE`: a line for each row, cells apart by two spaces (tbl(1))."""
        self.end_line()
        separator = "\t"
        layout = True
        row = ""
        in_cell = False
        while self.at < len(self.lines):
            line = self.next()
            if re.match(r"[.']\s*TE\b", line):
                break
            if option := re.search(r"tab\s*\((.)\)", line) if layout else None:
                separator = option[1]
            if line.startswith(".T&"):
                layout = True
            elif layout:
                layout = not line.rstrip().endswith(".")
            elif in_cell:
                in_cell = not line.startswith("T}")
                row += line[2:] if not in_cell else f" {line}" if line[:1] not in (".", "'") else ""
                if not in_cell and (in_cell := row.endswith("T{")):
                    row = row[:-2]
                if not in_cell:
                    self.row(row, separator)
            elif line[:1] not in (".", "'") and line.strip() not in ("_", "=", ""):
                row = line.rstrip()
                if in_cell := row.endswith("T{"):
                    row = row[:-2]
                else:
                    self.row(row, separator)
        self.empty_line()

    def row(self, row: str, separator: str) -> None:
        """Write one row of a table."""
        cells = [" ".join(self.unescaped(cell).split()) for cell in row.split(separator)]
        self.written.append("  ".join(cell for cell in cells if cell))

    # -- text ---------------------------------------------------------------------------------------------

    def arguments(self, rest: str) -> list[str]:
        """What stands behind a macro: words, or quoted text, escapes resolved."""
        found = ARGUMENT.finditer(rest)
        return [self.unescaped(m[1].replace('""', '"') if m[1] is not None else m[2]) for m in found]

    def unescaped(self, text: str, depth: int = 0) -> str:
        """Text without escapes; strings are put in."""

        def plain(found: re.Match[str]) -> str:
            name = found["string2"] or found["stringn"] or found["string1"]
            if name is not None:
                return self.unescaped(self.strings.get(name, ""), depth + 1) if depth < 5 else ""
            if found["over"] is not None:
                return found["over"][:1]
            if glyph := found["glyph2"] or found["glyphn"]:
                if re.fullmatch(r"u[0-9A-F]{4,6}", glyph):
                    return chr(min(int(glyph[1:], 16), 0x10FFFF))
                return GLYPHS.get(glyph, "")
            one = found["one"]
            return SINGLE.get(one, one) if one else ""

        return ESCAPE.sub(plain, text) if "\\" in text else text


def condition(rest: str) -> tuple[bool, str]:
    """Whether an `.if` holds for a formatter that writes to terminals, and what follows the condition."""
    rest = rest.lstrip()
    if rest.startswith("!"):
        holds, rest = condition(rest[1:])
        return not holds, rest
    if found := COMPARED.match(rest):
        return (found[1], found[3]) == (found[2], found[4]), rest[found.end() :]
    word, _, after = rest.partition(" ")
    if "\\{" in word:  # `n\{`
        word, brace, more = rest.partition("\\{")
        after = brace + more
    return word.strip() in ("n", "o", "1"), after


HANDLERS: dict[str, Callable[[Page, str], None]] = {
    "TH": Page.title,
    "SH": Page.section,
    "SS": Page.section,
    "TP": Page.tagged,
    "TQ": Page.another_tag,
    "IP": Page.indented,
    "UR": Page.link,
    "URL": Page.link,
    "MT": Page.link,
    "ds": Page.define_string,
    "de": Page.define_macro,
    "ig": Page.ignored,
    "if": Page.conditional,
    "ie": Page.conditional,
    "el": Page.otherwise,
    "TS": Page.table,
    **dict.fromkeys(("br", "RS", "RE", "ti", "in", "ce"), Page.broken),
}
