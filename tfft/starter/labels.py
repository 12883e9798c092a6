"""Class names in a column: whether its values are classes, and whether a row has several."""

import re
from collections import Counter
from collections.abc import Sequence

from tfft.data.records import LABEL_SEPARATOR

SEPARATORS = (LABEL_SEPARATOR, "|", ";", ",")
MOST_CLASSES = 1_000
_MAX_CHARACTERS, _MAX_WORDS = 60, 8  # of a class name, on average
_MAX_PART = 40  # characters of one of several labels
_MIN_SHARE = 0.02  # share of the rows with several labels, from which a column is multi-label
_FEWEST_NUMBERS = 10  # different numbers in a column of numbers to predict
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_DECIMAL = re.compile(r"[-+]?\d*\.\d*[1-9]\d*|[-+]?\d+(\.\d+)?e[-+]?\d+", re.IGNORECASE)


def separator(values: Sequence[str]) -> str | None:
    """Return the separator of a multi-label column, None if each value is one label.

    The parts must be short and repeat, and there must be fewer of them than of whole values: a
    comma in a class name separates nothing.
    """
    for candidate in SEPARATORS:
        several = [value for value in values if candidate in value]
        if not several:
            continue
        if candidate == LABEL_SEPARATOR:  # a list in the source
            return candidate
        counts = count(values, candidate)
        if not counts:  # of nothing but separators
            continue
        is_short = max(map(len, counts)) <= _MAX_PART
        repeats = len(counts) >= 2 and counts.total() >= 2 * len(counts)
        is_common = len(several) >= _MIN_SHARE * len(values)
        if is_short and repeats and is_common and len(counts) < len(set(values)):
            return candidate
    return None


def count(values: Sequence[str], separator: str | None) -> Counter[str]:
    """Return the number of rows of each class.

    Args:
        values: the cells of the label column.
        separator: of the labels in a cell; None if each cell is one label.
    """
    if separator is None:
        return Counter(values)
    return Counter(part for value in values for part in set(_parts(value, separator)))


def _parts(value: str, separator: str) -> list[str]:
    return [part for text in value.split(separator) if (part := text.strip())]


def _are_sequences(values: Sequence[str]) -> bool:
    """Return whether lists repeat their items: a tag for each word, not the labels of a row."""
    lists = [_parts(value, LABEL_SEPARATOR) for value in values if LABEL_SEPARATOR in value]
    repeating = sum(len(set(items)) < len(items) for items in lists)
    return repeating > _MIN_SHARE * len(values)


def are_classes(values: Sequence[str]) -> bool:
    """Return whether values look like classes: short ones that repeat, no decimal fractions."""
    counts = count(values, separator(values))
    if not 2 <= len(counts) <= MOST_CLASSES or are_decimals(values) or _are_sequences(values):
        return False
    few = counts.total() <= 20 and len(counts) < counts.total()
    if not few and counts.total() < 2 * len(counts):
        return False
    mean = sum(len(name) * rows for name, rows in counts.items()) / counts.total()
    words = sum(len(name.split()) * rows for name, rows in counts.items()) / counts.total()
    return mean <= _MAX_CHARACTERS and words <= _MAX_WORDS


def are_numbers(values: Sequence[str]) -> bool:
    """Return whether values look like numbers to predict: many different ones, not classes."""
    if not values or number_share(values) < 1 or len(set(values)) < _FEWEST_NUMBERS:
        return False
    return are_decimals(values) or not are_classes(values)


def number_share(values: Sequence[str]) -> float:
    """Return the share of values that are numbers."""
    return sum(_NUMBER.fullmatch(value.strip()) is not None for value in values) / len(values)


def are_decimals(values: Sequence[str]) -> bool:
    """Return whether a tenth of the values or more are decimal fractions: scores, not classes."""
    return 10 * sum(_DECIMAL.fullmatch(value.strip()) is not None for value in values) >= len(
        values
    )
