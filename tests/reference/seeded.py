"""Tensors that follow from their names: a large checkpoint need not be stored to be compared."""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a tensor as a trained network might have them, float32; the same everywhere."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.normal(size=shape)
    if name.endswith("running_var"):
        values = 0.8 + 0.4 * generator.uniform(size=shape)
    elif len(shape) == 1:
        # A half: sums of many blocks stay near 1, where float32 has all its digits.
        values = 0.1 * values + (0.5 if name.endswith("weight") else 0.0)
    elif len(shape) > 1:
        values = values * np.sqrt(1 / np.prod(shape[1:]))
    return np.asarray(values, np.float32)
