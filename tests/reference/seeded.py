"""Tensors derived from their names, so that golden files need not store large checkpoints."""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return reproducible values of a tensor, float32, of the scale of a trained network's.

    Args:
        name: seeds the values; PyTorch's name, for example `layer1.0.bn1.running_var`.
        shape: of the tensor.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.normal(size=shape)
    if name.endswith("running_var"):
        values = 0.8 + 0.4 * generator.uniform(size=shape)
    elif len(shape) == 1:
        # 0.5 keeps sums over many blocks near 1, where float32 is precise.
        values = 0.1 * values + (0.5 if name.endswith("weight") else 0.0)
    elif len(shape) > 1:
        values = values * np.sqrt(1 / np.prod(shape[1:]))
    return np.asarray(values, np.float32)
