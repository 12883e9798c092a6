"""Preparation of raw inputs as TensorFlow ops.

Tokenizers are built from the same description that the host side runs. It is walked from front to
back, as the tokenizers library does: added tokens are cut out of the raw text (`pipeline`), each
remaining piece is normalised (`normalize`), split and turned into ids (`wordpiece`, `bpe`,
`unigram`), and the ids of a row are cut and joined with the special tokens (`pack`).

Pictures (`pictures`) are decoded and resized by the same ops in training and in serving.
"""

from tfft.preprocess.graph.pipeline import GraphTokenizer

__all__ = ["GraphTokenizer"]
