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
