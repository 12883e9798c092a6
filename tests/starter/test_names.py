"""Names of columns that are common in public data sets."""

import pytest

from tfft.starter import names


@pytest.mark.parametrize(
    ("name", "other", "pair"),
    [
        ("sentence2", "sentence1", ("sentence1", "sentence2")),
        ("text_a", "text_b", ("text_a", "text_b")),
        ("hypothesis", "premise", ("premise", "hypothesis")),
        ("title", "text", None),
    ],
)
def test_pairs(name, other, pair):
    assert names.pair_of(name, [other]) == pair
