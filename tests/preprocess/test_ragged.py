"""Ragged steps without checks against TensorFlow's own, which have them."""

import pytest
import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import ragged

TEXTS = ["", " ", "a b  c", "  é,好 ", "no-space", ",,"]


@pytest.mark.parametrize(("delimiter", "kept"), [(r"\s+", ""), (r"\s|,", ","), ("-", "-")])
def test_regex_split_is_that_of_tensorflow_text(delimiter, kept):
    text = tf.constant(TEXTS)
    parts = ragged.regex_split(text, delimiter, kept)
    expected = tf_text.regex_split(text, delimiter, kept)
    assert parts.to_list() == expected.to_list()
    assert parts.row_splits.dtype == expected.row_splits.dtype
    none = ragged.regex_split(tf.constant([], tf.string), delimiter, kept)
    assert none.to_list() == []


def test_merged_is_merge_dims():
    values = tf.ragged.constant([[[1, 2], []], [], [[3]], [[], [4, 5, 6]]])
    assert ragged.merged(values).to_list() == values.merge_dims(1, 2).to_list()


def test_splits_are_not_checked():
    """What the checks cost: a condition each, of which a tokenizer's graph had dozens."""
    split = tf.function(lambda text: ragged.regex_split(text, " ").to_tensor())
    graph = split.get_concrete_function(tf.TensorSpec([None], tf.string)).graph
    assert not [op for op in graph.get_operations() if op.type in ("Assert", "If", "StatelessIf")]
