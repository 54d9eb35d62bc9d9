"""Manual pages as text, written down by hand as `man` shows them (without its margins and hyphens)."""

from __future__ import annotations

import pytest

from hllm_jax.data.markup import text_of_page


def shown(source: str) -> str:
    return text_of_page(source.removeprefix("\n"))


def test_a_page_of_man() -> None:
    source = r"""
.\" A comment, then the page
.TH LS 1 "2022 年 9 月" GNU "用户命令"
.SH 名称
ls \- 列出目录内容
.SH 概述
.B ls
[\fI\,选项\/\fR]... [\fI\,文件\/\fR]...
.SH 描述
.PP
列出指定“文件”（默认为当前
目录）的信息。 See
.BR dir (1),
.IR "the manual" .
.TP
\fB\-a\fR, \fB\-\-all\fR
不要忽略
以点号开始的
.TP
.B \-l
使用长列表格式
.PP
第二段
"""
    assert shown(source) == (
        "LS(1)\n\n名称\nls - 列出目录内容\n\n概述\nls [选项]... [文件]...\n\n"
        "描述\n列出指定“文件”（默认为当前目录）的信息。 See dir(1), the manual.\n\n"
        "-a, --all\n不要忽略以点号开始的\n\n-l\n使用长列表格式\n\n第二段"
    )


def test_code_keeps_its_lines_and_spaces() -> None:
    source = "text\n.PP\n.nf\n  if (x)\n      y\\e;\n\n  end\n.fi\nmore\ntext\n.EX\na  b\n.EE\n"
    assert shown(source) == "text\n\n  if (x)\n      y\\;\n\n  end\nmore text\na  b"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"a\-b \(em c \(lqd\(rq \[aq]e\[aq]", "a-b — c “d” 'e'"),
        (r"\s-1SMALL\s0 \s+2x\s-2 \f(CWcode\fP \f[B]b\f[]", "SMALL x code b"),
        (r"3\ 4\~5\|6\&7 \*(lqq\*(rq \*R", "3 4 567 “q” ®"),
        (r"\[u4E2D]\(cof\('e\[`a]", "中©fé" + "à"),
        (r"\e\en \\ \(rs", r"\\n \ " + "\\"),
        (r"\h'2n'x\v'-1'y\w'abc'u \o'oe'", "xyu o"),
        (r"kept \" dropped", "kept"),
        ('.ds X "two  words\nsay \\*X and \\*(zz.', "say two  words and ."),
    ],
)
def test_escapes(source: str, text: str) -> None:
    assert shown(source) == text


def test_conditions_take_the_terminal_s_side() -> None:
    source = r"""
.if t printed
.if n shown
.ie n \{\
one
.\}
.el \{\
two
.\}
.ie t three
.el four
.if !n five
.if 'a'a' six
.if 'a'b' seven
.if \n(.g eight
"""
    assert shown(source) == "shown one four six"


def test_macros_that_a_page_defines() -> None:
    defined = ".de Me\n.B \\\\$1 and\n\\\\$2\n..\n.de TP\n.nonsense\n..\n"
    source = defined + 'before\n.Me first "the second"\n.Un known\nend'
    assert shown(source) == "before first and the second end"


def test_a_macro_that_calls_itself_ends() -> None:
    assert shown(".de X\nagain\n.X\n..\n.X\nend") == "again end"


def test_a_table() -> None:
    source = ".TS\ntab(;) allbox;\nl l\nl lx.\nName;Meaning\n_\n\\fBa\\fR;T{\nlong text,\nof two lines\nT}\n"
    source += "b;x\n.TE\nafter"
    assert shown(source) == "Name  Meaning\na  long text, of two lines\nb  x\n\nafter"


def test_items_with_marks_and_with_words() -> None:
    source = '.IP \\(bu 2\none\nline\n.IP \\(bu\ntwo\n.IP 3.\nthree\n.IP "a word"\nmeaning\n.IP\nmore'
    assert shown(source) == "• one line\n• two\n3. three\n\na word\nmeaning\n\nmore"


def test_a_redirection_has_no_text() -> None:
    assert shown(".so man3/printf.3\n") == ""


def test_a_page_of_mdoc() -> None:
    source = r"""
.Dd 1999
.Dt BIFF 1
.Os "Linux"
.Sh 名称 (NAME)
.Nm biff
.Nd 新邮件提醒
.Sh SYNOPSIS
.Nm biff
.Op Fl ny
.Op Fl f Ar file
.Ar ...
.Nm biff2
.Op Ar user Ns @ Ns Ar host
.Sh 描述
.Nm
通知系统；参见
.Xr comsat 8 ,
.Pa /etc/x
或者
.Dq biff y .
.Bl -tag -width 4n
.It Fl n Ar num
禁止
提醒。
.It Cm y
开启。
.El
.Pp
End
.Bl -bullet
.It
one
.It
two
.El
.Bd -literal
a   b
.Ed
.Pq Em Fn f "int x" y
"""
    assert shown(source) == (
        "BIFF(1)\n\n名称 (NAME)\nbiff - 新邮件提醒\n\n"
        "SYNOPSIS\nbiff [-ny] [-f file] ...\nbiff2 [user@host]\n\n"
        "描述\nbiff 通知系统；参见 comsat(8), /etc/x 或者“biff y”.\n\n"
        "-n num\n禁止提醒。\n\ny\n开启。\n\nEnd\n\n• one\n\n• two\n\na   b\n\n(f(int x, y))"
    )


def test_nonsense_ends() -> None:
    for source in (
        "",
        ".",
        ".\n.\n",
        ".de",
        ".ig",
        ".TS",
        ".if",
        ".el \\{",
        "\\",
        "\\f",
        "\\[",
        ".Bl",
        ".It",
        '."',
    ):
        shown(source)
