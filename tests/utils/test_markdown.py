"""Class names and paths in Markdown show as they are."""

import re

import pytest

from tfft.utils import markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "<!-- a comment",
    "&lt;b&gt;",
    "a\n\n# Forged heading",
    "a\r# b\u2028# c\x85# d\x0b# e",
    "a | b",
    "[here](javascript:alert(1))",
    "![x](http://example.com/x.png)",
    "*bold* __bold__ ~~gone~~ `code` $x$",
    "\\",
    "\\<b>",
    "nul\x00 escape\x1b[31m right-to-left\u202e",
    "lone \ud800 surrogate",
]


def shown(text):
    """What a reader of the Markdown sees: escapes and entities undone."""
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        plain = plain.replace(entity, character)
    return plain


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_texts_have_no_effect(value):
    text = markdown.text(value)
    assert len(text.splitlines()) == 1 and text.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]#|~$<>]", text)
    assert not re.search(r"&(?!(lt|gt|amp);)", text)
    text.encode()
    kept = " ".join(value.split())
    if kept.isprintable():
        assert shown(text) == kept


def test_plain_texts_stay_as_they_are():
    for value in ("", "positive", "B-PER", "très bien!", "好评", "1.5 (a+b)"):
        assert markdown.text(value) == value
    assert markdown.text("never_mind") == r"never\_mind"


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("hf:a", "`hf:a`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        ("a\n# b", "`a # b`"),
        ("<b>", "`<b>`"),
    ],
)
def test_code(value, span):
    assert markdown.code(value) == span
