"""reStructuredText as text, written down by hand."""

from __future__ import annotations

import pytest

from hllm_jax.data.markup import text_of_rst


def shown(source: str) -> str:
    return text_of_rst(source.removeprefix("\n"))


def test_headings_and_paragraphs() -> None:
    source = """
.. SPDX-License-Identifier: GPL-2.0
.. _a-target:

=====
Title
=====

:Original: Documentation/x.rst
:Author: A
  B

这是一篇将如何参与内核开发
的文章，by
many people.

Section
-------
Text of
two lines.

----

After a transition.
"""
    assert shown(source) == (
        "Title\n\nOriginal: Documentation/x.rst\nAuthor: A B\n\n"
        "这是一篇将如何参与内核开发的文章，by many people.\n\nSection\n\nText of two lines.\n\n"
        "After a transition."
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a ``code *x*`` b", "a code *x* b"),
        ("*emph* and **strong**, 2 * 3 * 4", "emph and strong, 2 * 3 * 4"),
        ("char *a, int *b", "char *a, int *b"),
        (":ref:`the words <target>` :c:func:`kmalloc()` :doc:`x`", "the words kmalloc() x"),
        ("`SPDX <https://spdx.org/>`_ and `title`_", "SPDX <https://spdx.org/> and title"),
        (r"a\ b \*c\*", "ab *c*"),
    ],
)
def test_inline(source: str, text: str) -> None:
    assert shown(source) == text


def test_literal_blocks_keep_their_lines() -> None:
    source = "Run::\n\n    $ make   all\n      *x*\n\n    done\n\nor\n\n::\n\n  bare\n\nend ::\n\n\tx\n"
    assert (
        shown(source) == "Run:\n\n    $ make   all\n      *x*\n\n    done\n\nor\n\n    bare\n\nend\n\n    x"
    )


def test_lists() -> None:
    source = "- one\n  goes on\n- two\n\n  * inner\n    more\n\n1. first\n2. second\n   line\n\n"
    source += "term\n    meaning\n    of it\n"
    assert shown(source) == (
        "- one goes on\n- two\n\n  * inner more\n\n1. first\n2. second line\n\nterm\n    meaning of it"
    )


def test_directives() -> None:
    source = """
.. toctree::
   :maxdepth: 2

   a
   b

.. note::
   Read
   this.

.. warning:: And
   that.

.. code-block:: c
   :linenos:

   int  x;

.. kernel-doc:: lib/x.c
   :export:

.. c:function:: int f(int x)

   It returns.

.. |sub| replace:: gone

.. [1] A footnote
   goes on.

.. a comment
   of two lines

End
"""
    assert shown(source) == (
        "Read this.\n\nAnd that.\n\n    int  x;\n\nint f(int x)\n\nIt returns.\n\n"
        "[1] A footnote goes on.\n\nEnd"
    )


def test_tables() -> None:
    source = """
====  =======
Key   Meaning
====  =======
a     one two
b     three
====  =======

+---+-----+
| K | M   |
+===+=====+
| a | b c |
+---+-----+

.. flat-table:: A title
   :header-rows: 1

   * - Key
     - :cspan:`1` Meaning

   * .. _label:

     - ``a``
     - goes
       on

After
"""
    assert shown(source) == (
        "Key  Meaning\na  one two\nb  three\n\nK  M\na  b c\n\nA title\nKey  Meaning\na  goes on\n\nAfter"
    )


def test_nothing_is_included() -> None:
    assert shown(".. include:: /etc/passwd\n.. literalinclude:: ../secret\n\n.. raw:: html\n\n   <b>\n") == ""


def test_nonsense_ends() -> None:
    for source in (
        "",
        "::",
        "..",
        ".. ",
        ".. x::",
        "=====",
        "=====\n",
        "+--",
        "+-+\n|",
        "- ",
        "* -",
        "\ufeff",
        "a\n==\n",
    ):
        shown(source)
