"""Escaped class names and paths render as plain text in Markdown."""

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


def rendered(text):
    """Return the text that a reader sees, without escapes and entities."""
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
    expected = " ".join(value.split())
    if expected.isprintable():
        assert rendered(text) == expected


def test_plain_texts_are_unchanged():
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
def test_code_spans_fence_backticks(value, span):
    assert markdown.code(value) == span
