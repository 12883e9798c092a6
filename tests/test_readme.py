"""The English and the Chinese README have the same commands, tables and measurements."""

import re
from collections import Counter

from tests.conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^ *```\w*\n.*?^ *```$", re.DOTALL | re.MULTILINE)


def rows(text):
    """Return the first cells of all rows of tables that are code."""
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


def test_measurements_are_the_same():
    """Each decimal fraction occurs equally often in both."""
    counts = [
        Counter(re.findall(r"\d+\.\d+(?:e-\d)?", BLOCK.sub("", t))) for t in (ENGLISH, CHINESE)
    ]
    assert counts[0] - counts[1] == counts[1] - counts[0] == Counter()
