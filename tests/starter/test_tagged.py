"""Whether lines are those of a CoNLL file, and the names of numbered tags."""

import pytest

from tfft.starter import tagged
from tfft.starter.head import Column

SENTENCE = "Ann B-PER\nLee I-PER\nsees O\nRome B-LOC\n"
FILES = {
    "spaces": (f"{SENTENCE}\n{SENTENCE}", True),
    "tabs": (f"{SENTENCE}\t\n{SENTENCE}".replace(" ", "\t"), True),
    "marks": (f"-DOCSTART- -X- O\n\n{SENTENCE}\n# id = 1\n{SENTENCE}", True),
    "more columns": ("Ann NNP _ B-PER\nsees VBZ _ O\n\n" * 9, True),
    "types": ("Ann\tperson-artist\nsees\tO\nit\tO\n\n" * 9, True),
    "one mistake": (f"{SENTENCE}\n" * 9 + "in IN O\nRome b-loc\n", True),
    "no blank line": (SENTENCE * 9, False),
    "no sentence of two tokens": ("Ann B-PER\n\nRome B-LOC\n\n" * 9, False),
    "prose": ("The sky is red.\nThe grass is green.\n\n" * 9, False),
    "texts with classes": ("text\tlabel\n" + "a red sky\tB-a\na sea\tO\n\n" * 9, False),
    "words with classes": ("sky\tred\ngrass\tgreen\n\n" * 9, False),
    "one column": ("O\nO\n\n" * 9, False),
    "blank": ("\n\n", False),
    "empty": ("", False),
}


@pytest.mark.parametrize("name", FILES)
def test_conll_is_told_from_other_files(tmp_path, name):
    text, expected = FILES[name]
    (tmp_path / "t.txt").write_text(text)
    assert tagged.is_conll(tmp_path / "t.txt", "utf-8") == expected


def test_files_in_another_encoding_are_not_conll(tmp_path):
    (tmp_path / "t.txt").write_bytes(f"caf\xe9 O\n{SENTENCE}\n{SENTENCE}".encode("latin-1"))
    assert not tagged.is_conll(tmp_path / "t.txt", "utf-8")
    assert tagged.is_conll(tmp_path / "t.txt", "latin-1")


@pytest.mark.parametrize(
    ("cells", "item_names", "expected"),
    [
        ([["B-PER", "O"]], (), ()),
        ([[0, 3, 0], None, [1]], (), ("O", "tag_1", "tag_2", "tag_3")),
        ([["0", "1", "0"]], (), ("O", "tag_1")),
        ([[2, 1, 2]], (), ("tag_0", "tag_1", "tag_2")),
        ([[0, 0]], (), ("O", "tag_1")),
        ([[0, 1]], ("O", "B-PER", "I-PER"), ("O", "B-PER", "I-PER")),
    ],
)
def test_numbered_tags_have_names(cells, item_names, expected):
    names, doubt = tagged._tag_names(Column("ner_tags", lists=cells, item_names=item_names))
    assert names == expected and (doubt is not None) == bool(names and not item_names)
