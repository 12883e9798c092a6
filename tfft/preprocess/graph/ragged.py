"""Ragged operations without TensorFlow's validation of row partitions.

The partitions built here are valid by construction. Validation added about nine conditions to each
split. They took half of the time of tracing a tokenizer and ran in each request.
"""

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
    parts, _, _, splits = _split(text, f"({delimiter})", f"({kept_delimiter})")
    return tf.RaggedTensor.from_row_splits(parts, splits, validate=False)


def merge_inner_axes(values: tf.RaggedTensor) -> tf.RaggedTensor:
    """Join the two ragged axes of [N, (a), (b)], as `merge_dims(1, 2)`."""
    inner = values.values
    splits = tf.gather(inner.row_splits, values.row_splits)
    return tf.RaggedTensor.from_row_splits(inner.values, splits, validate=False)
