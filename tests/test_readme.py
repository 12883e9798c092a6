"""The README is one page, its links exist, and the Chinese one has the same content.

The same are the commands, code, tables, measurements and links.
"""

import re
from collections import Counter

from tests.conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
MAX_WORDS = 900  # as `wc -w` counts them: tables and code included
BLOCK = re.compile(r"^ *```\w*\n.*?^ *```$", re.DOTALL | re.MULTILINE)


def links(text):
    """Return the targets of all links and images, without those to the other language."""
    targets = re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", text))
    return [target for target in targets if not target.startswith("README")]


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


def test_it_is_one_page():
    assert len(ENGLISH.split()) <= MAX_WORDS


def test_links_are_the_same():
    assert Counter(links(CHINESE)) == Counter(links(ENGLISH))


def test_links_exist():
    """Each link to a file leads to it, and each fragment to a heading there."""
    for target in links(ENGLISH):
        name, _, fragment = target.partition("#")
        assert (ROOT / name).exists(), target
        if fragment:
            text = BLOCK.sub("", (ROOT / name).read_text(encoding="utf-8"))
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = [re.sub(r"\W+", "-", heading.lower()) for heading in headings]
            assert fragment in anchors, target


def test_the_tree_lists_every_folder():
    tree = ENGLISH.split("## The tree")[1].split("```")[1]
    listed = set(re.findall(r"^(\S+/) ", tree, re.MULTILINE))
    packages = {f"tfft/{path.parent.name}/" for path in ROOT.glob("tfft/*/__init__.py")}
    others = {"tests/", "configs/", "docs/", "benchmarks/", "examples/", "colab/"}
    assert listed == packages | others
