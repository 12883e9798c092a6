"""CoNLL files: separators, comments, marks, encodings; malformed lines with their place."""

import tracemalloc
from pathlib import Path

import pytest

from tfft.config import Source
from tfft.data import conll
from tfft.data.records import BadRow, Row
from tfft.utils.errors import UserError
from tfft.utils.reading import LONGEST_LINE

COLUMNS = "EU\tNNP\tB-ORG\nrejects\tVBZ\tO\n\nPeter\tNNP\tB-PER\nBlackburn\tNNP\tI-PER\n"
SENTENCES = [(("EU", "rejects"), ("B-ORG", "O")), (("Peter", "Blackburn"), ("B-PER", "I-PER"))]


@pytest.fixture
def read(tmp_path):
    """Return a function that reads text as a CoNLL file."""

    def read(text, columns=conll.TOKEN_AND_TAG, encoding="utf-8", **options):
        content = text if isinstance(text, bytes) else text.encode(encoding)
        (tmp_path / "t.conll").write_bytes(content)
        return list(conll.sentences(tmp_path / "t.conll", columns, encoding, **options))

    return read


def values(rows):
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.values for row in rows]


def lines(rows):
    return [row.place.rpartition("t.conll:")[2] for row in rows]


@pytest.mark.parametrize("separator", ["\t", " ", "  "])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_line_ends_and_encodings(read, separator, line_end, encoding):
    text = COLUMNS.replace("\t", separator).replace("\n", line_end)
    for end in ("", line_end, line_end * 3, line_end + "  \t " + line_end):
        rows = read(text.removesuffix(line_end) + end, encoding=encoding)
        assert values(rows) == SENTENCES
        assert lines(rows) == ["1", "4"]


def test_columns_are_selected_by_number(read):
    assert values(read(COLUMNS, (0, 1)))[1] == (("Peter", "Blackburn"), ("NNP", "NNP"))
    assert values(read(COLUMNS, (-3, 2))) == SENTENCES
    assert values(read(COLUMNS, (0,))) == [(tokens,) for tokens, _ in SENTENCES]
    with pytest.raises(UserError, match=r"t\.conll:1: no column 3: the line has 3 \(0 to 2\)"):
        read(COLUMNS, (0, 3))
    with pytest.raises(UserError, match=r"t\.conll:1: no column -4"):
        read(COLUMNS, (-4, 1))
    with pytest.raises(UserError, match=r":1: columns 0 and -1 are the same.*Received: 'EU'"):
        read("EU\nrejects\n")


def test_a_source_is_read_file_by_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.conll").write_text(COLUMNS)
    source = Source(source="tsv", path=f"{tmp_path}/*.conll")
    rows = list(conll.conll(source, conll.TOKEN_AND_TAG, "data.train"))
    assert values(rows) == SENTENCES * 2
    assert rows[3].place == f"{tmp_path}/b.conll:4"
    with pytest.raises(UserError, match=r"^data\.train: columns of CoNLL .* Received: 'token'"):
        list(conll.conll(source, ("token", "tag"), "data.train"))


def test_document_marks_are_skipped_and_end_a_sentence(read):
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n-DOCSTART- -X- O\n"
    rows = read(text + "Peter NNP B-PER\nBlackburn NNP I-PER\n")
    assert values(rows) == SENTENCES
    assert lines(rows) == ["3", "6"]


@pytest.mark.parametrize(
    "comment",
    [
        "# sent_id = 1",  # as many words as the token lines have columns
        "# text = EU rejects a call",
        "# newdoc",
        "# id 5f2d\tdomain=en",  # MultiCoNER's
    ],
)
@pytest.mark.parametrize("separator", ["\t", " "])
def test_comments_in_front_of_a_sentence_are_skipped(read, comment, separator):
    text = f"{comment}\n\n{comment}\n{comment}\nEU a b B-ORG\nrejects a b O\n\n{comment}\n"
    text = f"{text}Peter a b B-PER\nBlackburn a b I-PER\n\n{comment}\n"
    rows = read(text.replace(" a b ", f"{separator}a{separator}b{separator}"))
    assert values(rows) == SENTENCES
    assert lines(rows) == ["5", "9"]


def test_a_comment_may_hold_the_tab_that_separates_columns(read):
    (row,) = read("# id 5f2d\tdomain=en\nEU\tB-ORG\nrejects\tO\n")
    assert row.values == SENTENCES[0]


@pytest.mark.parametrize("separator", ["\t", " "])
def test_a_number_sign_is_a_token(read, separator):
    text = "# O\n1 O\n\n# O\n#fun B-X\n# O\n".replace(" ", separator)
    assert [tokens for tokens, _ in values(read(text))] == [("#", "1"), ("#", "#fun", "#")]
    # In the middle of a sentence, and without a space, a line without a tag is no comment.
    for line in ("# a b c", "#fun"):
        (row,) = read(f"a{separator}O\n{line}\n")
        assert isinstance(row, BadRow) and lines([row]) == ["2"]
    assert values(read("#\tO\n#\tO\n")) == values(read("# O\n# O\n")) == [(("#", "#"), ("O", "O"))]


def test_other_white_space_belongs_to_the_token(read):
    tokens = ("10\u00a0000", "\u3000", "a\u2028b", "c\x0bd", "\x85")
    for separator in "\t ":
        rows = read("".join(f"{token}{separator}O\n" for token in tokens))
        assert values(rows) == [(tokens, ("O",) * 5)]
    assert values(read("New York\tB-LOC\n")) == [(("New York",), ("B-LOC",))]


def test_malformed_lines_spoil_only_their_sentence(read):
    text = COLUMNS + "\nNew\tNNP\tB-LOC\nYork\tNNP\nis\tVBZ\n\n" + COLUMNS
    rows = read(text)
    assert values(rows[:2] + rows[3:]) == SENTENCES * 2
    assert lines(rows) == ["1", "4", "8", "11", "14"]
    reason = r"2 columns where 3 are expected; fix the separators. Received: 'York\tNNP'"
    assert rows[2].reason == reason
    (row,) = read("a\tO\n\tO\n")
    assert lines([row]) == ["2"]
    assert row.reason == "column 0 is empty; fill it or drop the sentence"
    (row,) = read("a\tO\nb\t\n")
    assert "column 1 is empty" in row.reason
    (row,) = read("a\tO\nb\n")
    assert "1 column where 2 are expected" in row.reason
    (row,) = read(b"a\tO\n+2AA-\tO\n", encoding="utf-7")
    assert "lone surrogate" in row.reason


def test_a_file_without_sentences_or_in_another_encoding_is_refused(read):
    for text in ("", "\n \t\n", "-DOCSTART- O\n\n"):
        with pytest.raises(UserError, match=r"t\.conll: empty; needs at least one sentence"):
            read(text)
    with pytest.raises(UserError, match=r"t\.conll:3: byte 0xe9 is not utf-8; declare"):
        read("a O\n\né O\n".encode("latin-1"))
    with pytest.raises(UserError, match="unknown encoding"):
        list(conll.sentences(Path(__file__), encoding="hex"))


def test_a_sentence_has_a_limit(read):
    text = "a O\n" * 5 + "\n" + "b O\n" * 4
    rows = read(text, longest=4)
    assert lines(rows) == ["1", "7"] and isinstance(rows[1], Row)
    assert rows[0].reason.startswith("more than 4 lines or")
    word = "x" * (1 << 18)
    rows = read(f"{word} O\n{word} O\n\na O\n")
    assert lines(rows) == ["2", "4"]
    assert rows[0].reason.startswith("the sentence of line 1 has more than 524,288 characters")


def test_memory_is_bounded_without_blank_lines(read, tmp_path):
    path = tmp_path / "t.conll"
    with path.open("w") as file:
        for _ in range(80):
            file.write("x" * (1 << 20) + " O\n")
        file.write("\na O\n")
    tracemalloc.start()
    rows = list(conll.sentences(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines(rows) == ["1", "82"] and isinstance(rows[1], Row)
    assert peak < 4 * LONGEST_LINE
    path.write_text("x" * (LONGEST_LINE + 1))
    with pytest.raises(UserError, match=r"t\.conll:1: a line of more than"):
        list(conll.sentences(path))


def test_real_tweets(real_data):
    """Of WNUT-17, Derczynski et al. 2017; counts as its files have by `grep -c`."""
    folder = real_data / "wnut17"
    if not folder.is_dir():
        pytest.skip("no wnut17")
    sizes = {"wnut17train.conll": 3394, "emerging.dev.conll": 1009, "emerging.test.annotated": 1287}
    for name, size in sizes.items():
        rows = list(conll.sentences(folder / name))
        assert all(isinstance(row, Row) for row in rows)
        assert len(rows) == size
        tokens = sum(len(row.values[0]) for row in rows)
        text = (folder / name).read_text(encoding="utf-8")
        assert tokens == sum("\t" in line and bool(line.strip()) for line in text.split("\n"))
