"""Ragged operations without validation equal TensorFlow's own, which validate."""

import pytest
import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import ragged

TEXTS = ["", " ", "a b  c", "  é,好 ", "no-space", ",,"]


@pytest.mark.parametrize(
    ("delimiter", "kept_delimiter"), [(r"\s+", ""), (r"\s|,", ","), ("-", "-")]
)
def test_regex_split_equals_tensorflow_text(delimiter, kept_delimiter):
    text = tf.constant(TEXTS)
    parts = ragged.regex_split(text, delimiter, kept_delimiter)
    expected = tf_text.regex_split(text, delimiter, kept_delimiter)
    assert parts.to_list() == expected.to_list()
    assert parts.row_splits.dtype == expected.row_splits.dtype
    empty = ragged.regex_split(tf.constant([], tf.string), delimiter, kept_delimiter)
    assert empty.to_list() == []


def test_merge_inner_axes_equals_merge_dims():
    values = tf.ragged.constant([[[1, 2], []], [], [[3]], [[], [4, 5, 6]]])
    assert ragged.merge_inner_axes(values).to_list() == values.merge_dims(1, 2).to_list()


def test_splits_are_not_validated():
    """Check that no conditions are traced: validation added dozens to a tokenizer's graph."""
    split = tf.function(lambda text: ragged.regex_split(text, " ").to_tensor(), autograph=False)
    graph = split.get_concrete_function(tf.TensorSpec([None], tf.string)).graph
    assert not [op for op in graph.get_operations() if op.type in ("Assert", "If", "StatelessIf")]


ROWS = [[[3, 1, 2], [], [5], []], [[], [], [], []], [[7], [8, 9], [], [1]], []]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_two_axes_equal_tensorflows(rows):
    values = tf.ragged.constant(rows, tf.int32, ragged_rank=1)
    others = values.with_flat_values(values.flat_values + 10)[::-1]
    assert ragged.row_ids(values).numpy().tolist() == values.value_rowids().numpy().tolist()
    for parts in ([values], [values, others], [others, values, others]):
        assert ragged.concat(parts).to_list() == tf.concat(parts, axis=1).to_list()
    column = tf.RaggedTensor.from_tensor(values.row_lengths()[:, None])
    assert ragged.column(values.row_lengths()).to_list() == column.to_list()
    mask = values.flat_values % 2 == 1
    expected = tf.ragged.boolean_mask(values, values.with_flat_values(mask))
    assert ragged.select(values, mask).to_list() == expected.to_list()
