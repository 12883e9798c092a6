"""Preparation of raw inputs as TensorFlow ops.

Tokenizers are built from the description that the host side runs, and follow it in the order of the
tokenizers library: added tokens are cut out of the raw text (`pipeline`), each remaining part is
normalized (`normalize`), split and turned into ids (`wordpiece`, `bpe`, `unigram`), and the ids of
a row are truncated and joined with the special tokens (`pack`). Where tokens are located in the raw
text (`located`), each step maps characters with their origins as well (`aligned`, `offsets`).

Images (`image_ops`) are decoded and resized by the same ops in training and in serving.
"""

from tfft.preprocess.graph.pipeline import GraphTokenizer

__all__ = ["GraphTokenizer"]
