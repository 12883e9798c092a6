"""Tokenizers as TensorFlow ops, built from the same description that the host side runs."""




