"""The macros of mdoc(7), in which pages from BSD are written; `roff` calls them.

A line is a macro with words behind it, which may be macros themselves: `.It Fl n Ar name` reads "-n name".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from hllm_jax.data.markup.roff import Page

GLUE = "\0"
"""Between two pieces that stand without a space."""
BEFORE = set(".,:;)]?!")
AFTER = set("([")

#: The rest of the line, or up to the closing macro, between two signs.
ENCLOSED = {
    **{"Op": "[]", "Pq": "()", "Bq": "[]", "Brq": "{}", "Aq": "<>", "Dq": "“”", "Qq": '""', "Sq": "‘’"},
    **{"Ql": "‘’"},
}
OPENING = {"Oo": "[", "Po": "(", "Bo": "[", "Bro": "{", "Ao": "<", "Do": "“", "Qo": '"', "So": "‘"}
CLOSING = {"Oc": "]", "Pc": ")", "Bc": "]", "Brc": "}", "Ac": ">", "Dc": "”", "Qc": '"', "Sc": "’"}
#: Only fonts, or nothing that text shows.
PLAIN = {
    *("Ad", "An", "Ar", "Bk", "Cd", "Cm", "Dv", "Ec", "Ek", "Em", "Eo", "Er", "Ev", "Fa", "Ic", "Lb", "Li"),
    *("Lk", "Ms", "Mt", "Nd", "No", "Pa", "Sm", "St", "Sx", "Sy", "Tn", "Va", "Vt", "Xc", "Xo"),
}
SYSTEMS = {"Ux": "UNIX", "Bx": "BSD", "At": "AT&T UNIX", "Fx": "FreeBSD", "Nx": "NetBSD", "Ox": "OpenBSD"}
INLINE = {*ENCLOSED, *OPENING, *CLOSING, *PLAIN, *SYSTEMS, *("Fl", "Nm", "Ns", "Ap", "Pf", "Xr", "Fn")}
OWN_LINE = {"Dl", "D1", "Fd", "In", "Ft", "Ex", "Rv"}


def sentence(page: Page, words: list[str]) -> str:
    """The text of words among which there are macros."""
    text = ""
    glue = True
    for piece in pieces(page, words):
        if piece == GLUE:
            glue = True
        elif piece:
            text += piece if glue or piece in BEFORE else f" {piece}"
            glue = piece in AFTER
    return text


def pieces(page: Page, words: list[str]) -> list[str]:
    """The same in pieces, with `GLUE` where no space goes."""
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ENCLOSED:
            tail: list[str] = []
            while rest and rest[-1] in BEFORE:  # punctuation at the end stands outside
                tail.insert(0, rest.pop())
            opening, closing = ENCLOSED[word]
            return [*found, f"{opening}{sentence(page, rest)}{closing}", *tail]
        if word in OPENING:
            found += [OPENING[word], GLUE]
        elif word in CLOSING:
            found += [GLUE, CLOSING[word]]
        elif word == "Ns":
            found.append(GLUE)
        elif word == "Ap":
            found += [GLUE, "'", GLUE]
        elif word == "Pf" and rest:
            found += [page.unescaped(rest.pop(0)), GLUE]
        elif word == "Fl":
            given = plain_words(rest)
            found += [f"-{page.unescaped(each)}" for each in given] or ["-"]
        elif word == "Nm":
            given = plain_words(rest)
            page.name = page.name or " ".join(map(page.unescaped, given))
            found += [page.unescaped(each) for each in given] or [page.name]
        elif word == "Ar" and (not rest or rest[0] in INLINE or rest[0] in BEFORE):
            found.append("file ...")
        elif word == "Xr":
            given = plain_words(rest)
            found.append(given[0] + (f"({given[1]})" if len(given) > 1 else "") if given else "")
        elif word == "Fn":
            given = [page.unescaped(each) for each in plain_words(rest)]
            found.append(f"{given[0]}({', '.join(given[1:])})" if given else "")
        elif word in SYSTEMS:
            found += [*plain_words(rest), SYSTEMS[word]]
        elif word == "Nd":
            found.append("-")
        elif word not in PLAIN:
            found.append(page.unescaped(word))
    return found


def plain_words(rest: list[str]) -> list[str]:
    """Take off the words up to the next macro or sign."""
    found: list[str] = []
    while rest and rest[0] not in INLINE and rest[0] not in BEFORE | AFTER:
        found.append(rest.pop(0))
    return found


def title(page: Page, words: list[str]) -> None:
    """`.Dt NAME section`."""
    if not page.written:
        page.written.append(f"{words[0]}({words[1]})" if len(words) > 1 else " ".join(words))
        page.empty_line()


def section(page: Page, words: list[str]) -> None:
    """`.Sh` and `.Ss`."""
    page.fill = True
    page.head(sentence(page, words))


def begin_list(page: Page, words: list[str]) -> None:
    """`.Bl -kind …`."""
    page.end_line()
    page.lists.append(words[0].removeprefix("-") if words else "")


def end_list(page: Page, words: list[str]) -> None:
    """`.El`."""
    page.empty_line()
    if page.lists:
        page.lists.pop()


def item(page: Page, words: list[str]) -> None:
    """`.It`: a mark on the line of its text, the cells of a row, or a tag on a line of its own."""
    kind = page.lists[-1] if page.lists else ""
    page.empty_line()
    if kind in ("bullet", "dash", "hyphen", "enum", "item"):
        page.line = {"bullet": "•", "dash": "-", "hyphen": "-"}.get(kind, "")
    elif head := sentence(page, [word for word in words if word != "Ta"]):
        page.written.append(head)


def begin_display(page: Page, words: list[str]) -> None:
    """`.Bd -kind …`."""
    page.empty_line()
    page.fill = not {"-literal", "-unfilled"} & set(words)


def end_display(page: Page, words: list[str]) -> None:
    """`.Ed`."""
    page.empty_line()
    page.fill = True


def own_line(page: Page, words: list[str]) -> None:
    """`.Dl`, `.Fd` and others: a line by itself."""
    page.end_line()
    page.write(sentence(page, words))
    page.end_line()


def reference(page: Page, words: list[str]) -> None:
    """`.%A`, `.%T` and others: a part of a bibliography entry."""
    page.write(sentence(page, words) + ",")


def running(name: str) -> Callable[[Page, list[str]], None]:
    """A macro whose text stands in the running text."""

    def write(page: Page, words: list[str]) -> None:
        text = sentence(page, [name, *words])
        if text and name == "Nm" and page.head_is_synopsis:
            page.end_line()
        if text:
            page.write(text)

    return write


MACROS: dict[str, Callable[[Page, list[str]], None]] = {
    **{name: running(name) for name in INLINE},
    **dict.fromkeys(OWN_LINE, own_line),
    **{f"%{letter}": reference for letter in "ABCDIJNOPQRTUV"},
    "Dt": title,
    "Sh": section,
    "Ss": section,
    "Bl": begin_list,
    "El": end_list,
    "It": item,
    "Bd": begin_display,
    "Ed": end_display,
}
