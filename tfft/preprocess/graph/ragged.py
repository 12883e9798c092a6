"""Ragged operations without TensorFlow's validation of row partitions.

The partitions built here are valid by construction. Validation added about nine conditions to each
split. They took half of the time of tracing a tokenizer and ran in each request. TensorFlow's own
operations also add 70 to 600 nodes to a graph where a few are enough for two axes.
"""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_text  # noqa: F401 -- loads the op
from tensorflow_text.python.ops import regex_split_ops

# Not public: `tf_text.regex_split` validates the partitions that this op returns.
# tests/preprocess/test_ragged.py compares the two.
_split = regex_split_ops.gen_regex_split_ops.regex_split_with_offsets


def regex_split(text: tf.Tensor, delimiter: str, kept_delimiter: str = "") -> tf.RaggedTensor:
    """Split strings [N] at a regular expression, as `tf_text.regex_split`; ragged [N, parts].

    Args:
        text: strings [N].
        delimiter: RE2 pattern of the delimiters.
        kept_delimiter: RE2 pattern of those delimiters that become parts themselves.
    """
    return regex_split_with_offsets(text, delimiter, kept_delimiter)[0]


def regex_split_with_offsets(
    text: tf.Tensor, delimiter: str, kept_delimiter: str = ""
) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Return the parts of `regex_split`, and where each begins: bytes, int64 [all parts]."""
    parts, begins, _, splits = _split(text, f"({delimiter})", f"({kept_delimiter})")
    return tf.RaggedTensor.from_row_splits(parts, splits, validate=False), begins


def merge_inner_axes(values: tf.RaggedTensor) -> tf.RaggedTensor:
    """Join the two ragged axes of [N, (a), (b)], as `merge_dims(1, 2)`."""
    inner = values.values
    splits = tf.gather(inner.row_splits, values.row_splits)
    return tf.RaggedTensor.from_row_splits(inner.values, splits, validate=False)


def row_ids(values: tf.RaggedTensor) -> tf.Tensor:
    """Return the row of each value of [N, (a)], int [all values], as `value_rowids`."""
    splits = values.row_splits
    index = tf.range(tf.size(values.flat_values, splits.dtype))
    bounds = tf.raw_ops.UpperBound(
        sorted_inputs=splits[None], values=index[None], out_type=splits.dtype
    )
    return bounds[0] - 1


def column(values: tf.Tensor) -> tf.RaggedTensor:
    """Return values [N] as rows of one value each, [N, (1)]."""
    splits = tf.range(tf.size(values, tf.int64) + 1)
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def concat(parts: Sequence[tf.RaggedTensor]) -> tf.RaggedTensor:
    """Join the rows of tensors [N, (a)], as `tf.concat` along axis 1."""
    # All rows of the first part, then those of the second, and so on.
    stacked = tf.RaggedTensor.from_row_lengths(
        tf.concat([part.flat_values for part in parts], axis=0),
        tf.concat([part.row_lengths() for part in parts], axis=0),
        validate=False,
    )
    rows = parts[0].nrows()
    order = tf.transpose(tf.reshape(tf.range(len(parts) * rows), [len(parts), -1]))
    ordered = tf.gather(stacked, tf.reshape(order, [-1]))
    splits = ordered.row_splits[:: len(parts)]
    return tf.RaggedTensor.from_row_splits(ordered.flat_values, splits, validate=False)


def select(values: tf.RaggedTensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """Return the values [N, (a)] where a mask [all values] is true, as `tf.ragged.boolean_mask`."""
    count = tf.pad(tf.cumsum(tf.cast(mask, values.row_splits.dtype)), [[1, 0]])
    return tf.RaggedTensor.from_row_splits(
        tf.gather(values.flat_values, tf.where(mask)[:, 0]),
        tf.gather(count, values.row_splits),
        validate=False,
    )


def positions(values: tf.RaggedTensor) -> tf.RaggedTensor:
    """Return the index of each value within its row, ragged int32 [N, (a)]."""
    index = tf.range(tf.size(values.flat_values, tf.int64))
    start = tf.gather(values.row_splits, row_ids(values))
    return values.with_flat_values(tf.cast(index - start, tf.int32))


def cumulative(values: tf.RaggedTensor) -> tf.RaggedTensor:
    """Return the sum of each value and those before it in its row, ragged [N, (a)]."""
    total = tf.pad(tf.cumsum(values.flat_values), [[1, 0]])
    before = tf.gather(total, tf.gather(values.row_splits, row_ids(values)))
    return values.with_flat_values(total[1:] - before)
