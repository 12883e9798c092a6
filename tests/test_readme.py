"""The two READMEs say the same: every command and every figure of the one stands in the other."""

import re
from collections import Counter

from tests.conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^ *```\w*\n.*?^ *```$", re.DOTALL | re.MULTILINE)


def rows(text):
    """The first cells of all tables, where they are code."""
    return re.findall(r"^\| (`[^|]*`(?:、`[^|]*`|, `[^|]*`)*) \|", text, re.MULTILINE)


def test_commands_and_configs_are_equal():
    assert BLOCK.findall(CHINESE) == BLOCK.findall(ENGLISH)


def test_sections_and_tables_are_the_same():
    levels = [
        re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE) for text in (ENGLISH, CHINESE)
    ]
    assert levels[0] == levels[1]
    names = [[re.findall(r"`[^`]+`", row) for row in rows(text)] for text in (ENGLISH, CHINESE)]
    assert names[0] == names[1]


def test_figures_are_the_same():
    """Whatever is measured: each decimal fraction as often in both."""
    found = [
        Counter(re.findall(r"\d+\.\d+(?:e-\d)?", BLOCK.sub("", t))) for t in (ENGLISH, CHINESE)
    ]
    assert found[0] - found[1] == found[1] - found[0] == Counter()
