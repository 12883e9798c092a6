"""Whether values are classes, and what separates several in a cell."""

import pytest

from tfft.starter import labels


def test_commas_in_class_names_separate_nothing():
    values = ["arts, crafts", "sports", "home, garden"] * 20
    assert labels.separator(values) is None and labels.are_classes(values)
    assert not labels.are_classes([f"{n / 7:.2f}" for n in range(60)] * 2)


@pytest.mark.parametrize("sign", "|;,")
def test_separators_alone_are_no_labels(sign):
    assert labels.separator([sign] * 9) is None
