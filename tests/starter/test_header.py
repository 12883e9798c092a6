"""Whether the first row of a table names its columns."""

import pytest

from tfft.starter import header


@pytest.mark.parametrize(
    ("cells", "rows", "expected"),
    [
        (("text", "label"), [("a", "b")], True),
        (("", "Review"), [("0", "so good")], True),
        (("the sky", "blue"), [("a sea", "blue")], False),
        (("the sky", "3"), [("a sea", "4")], False),
        (("quite a long first text of many words", "x"), [("a", "b")], False),
        (("label", "b"), [("label", "c")], False),
        (("foo", "bar"), [("a", "b")], True),
        (("0", "1"), [("a long film", "pos"), ("so good", "neg")], True),
        (("", "0", "1"), [("0", "a long film", "1"), ("1", "so good", "0")], True),
        (("0", "1"), [("1", "0"), ("0", "1")], False),
        (("text", "spam"), [("a long film", "spam"), ("so good", "ham")], True),
        (("text", "1"), [("a long film", "2")], True),
        (("review", "2019"), [("a long film", "a")], True),
        (("what is the date", "3"), [("a sea", "4")], False),
    ],
)
def test_headers(cells, rows, expected):
    assert header.is_header(cells, rows)[0] == expected


def test_rows_that_may_be_headers_are_doubted():
    rows = [("a long film it was", "spam"), ("so good a film", "ham")]
    assert header.is_header(("words", "spam"), rows) == (False, header._DATA)
    assert header.is_header(("it was good", "spam"), rows) == (False, None)
    assert header.is_header(("text", "1"), rows) == (True, header._NAMES)
