"""Arrays with a varying number of entries in each row."""

import numpy as np

from tfft.utils.ragged import Ragged

ROWS = [np.array([1, 2]), np.array([], int), np.array([3]), np.array([4, 5, 6])]
RAGGED = Ragged.from_rows(ROWS, np.int32)


def test_rows_are_those_that_were_joined():
    assert [row.tolist() for row in RAGGED] == [row.tolist() for row in ROWS]
    assert len(RAGGED) == 4 and RAGGED.values.dtype == np.int32
    assert RAGGED.lengths.tolist() == [2, 0, 1, 3]
    assert RAGGED.row_ids.tolist() == [0, 0, 2, 3, 3, 3]


def test_some_rows_in_any_order():
    some = RAGGED[np.array([3, 1, 0, 3])]
    assert [row.tolist() for row in some] == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
    indices, rows = RAGGED.indices(np.array([3, 1, 0]))
    assert indices.tolist() == [3, 4, 5, 0, 1] and rows.tolist() == [0, 0, 0, 2, 2]
    assert len(RAGGED[np.zeros(0, int)]) == 0


def test_no_rows():
    empty = Ragged.from_rows([], np.int32)
    assert len(empty) == 0 and len(empty.row_ids) == 0 and list(empty) == []


def test_entries_of_several_numbers():
    pairs = RAGGED.with_values(np.stack([RAGGED.values, -RAGGED.values], axis=1))
    assert pairs[3].tolist() == [[4, -4], [5, -5], [6, -6]]


def test_digest_sees_where_rows_end():
    moved = Ragged(RAGGED.values, np.array([1, 2, 3, 6]))
    assert moved.tobytes() != RAGGED.tobytes()
