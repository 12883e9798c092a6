"""The YAML with its comments."""

from tfft.starter import page


def test_comments_hold_no_line_breaks():
    lines = page._comment("a\u2028b\x85c\nd\xa0e", "")
    assert lines == [r"# a\u2028b\x85c\nd\xa0e"]
    entries = [page.Entry("text", "t", "a\u2028b")]
    assert r"# a\u2028b" in page.write([], {"data": entries})
