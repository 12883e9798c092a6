"""Maps between the tensors of a PyTorch checkpoint and the variables of an encoder, both ways.

A `WeightMap` maps a variable's path to an `Entry`: its tensors and their form, which `read`
converts to the variable and `write` converts back:

- `same`: equal;
- `transpose`: a Linear [out, in], in Keras a Dense [in, out];
- `fused`: three Linears side by side, [in, 3 * out] or [3 * out];
- `conv`: a Conv2d [out, in, h, w], in Keras [h, w, in, out];
- `depthwise`: a depthwise Conv2d [channels, 1, h, w], in Keras [h, w, channels, 1];
- `averaged`: the mean of the outputs of n Linears, each on its part of the input, as one Dense:
  [n * in, out] or [out].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entry:
    """Tensors that one variable is made from.

    Attributes:
        tensors: their names.
        form: see the module.
    """

    tensors: tuple[str, ...]
    form: str = "same"


WeightMap = Mapping[str, Entry]
# Keras' axis i is PyTorch's axis _AXES[form][i].
_AXES = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1)}


def read(entry: Entry, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Return a variable's value, made from the values of its tensors."""
    if entry.form == "transpose":
        return tensors[0].T
    if entry.form == "fused":
        # Linears [out, in] side by side along the axis of the outputs.
        return np.concatenate([t.T for t in tensors], axis=-1)
    if entry.form in _AXES:
        return tensors[0].transpose(_AXES[entry.form])
    if entry.form == "averaged":
        # Kernels [in, out] stand one below the other; biases [out] are added.
        combine = np.concatenate if tensors[0].ndim > 1 else sum
        return combine([t.T for t in tensors]) / len(tensors)
    return tensors[0]


def write(entry: Entry, value: np.ndarray) -> list[np.ndarray]:
    """Return the values of an entry's tensors for a variable's value: the inverse of `read`.

    For `averaged` biases, only the mean is restored.
    """
    if entry.form == "transpose":
        return [np.ascontiguousarray(value.T)]
    if entry.form == "fused":
        parts = np.split(value, len(entry.tensors), axis=-1)
        return [np.ascontiguousarray(part.T) for part in parts]
    if entry.form in _AXES:
        # `argsort` inverts a permutation.
        return [np.ascontiguousarray(value.transpose(np.argsort(_AXES[entry.form])))]
    if entry.form == "averaged":
        count = len(entry.tensors)
        # `read` divides by the number of Linears.
        parts = np.split(value * count, count) if value.ndim > 1 else [value] * count
        return [np.ascontiguousarray(part.T) for part in parts]
    return [value]


def shapes(entry: Entry, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of an entry's tensors, given the shape of its variable."""
    count = len(entry.tensors)
    if entry.form in _AXES:
        return [tuple(shape[axis] for axis in np.argsort(_AXES[entry.form]))]
    if entry.form == "fused":
        shape = (*shape[:-1], shape[-1] // count)
    if entry.form == "averaged" and len(shape) > 1:
        shape = (shape[0] // count, *shape[1:])
    transposed = entry.form in ("transpose", "fused", "averaged")
    return [tuple(shape[::-1] if transposed else shape)] * count


def dense(path: str, tensor: str) -> dict[str, Entry]:
    """Return the entries of a Linear: kernel and bias.

    Args:
        path: path of the Keras layer.
        tensor: prefix of the tensors' names.
    """
    return {
        f"{path}/kernel": Entry((f"{tensor}.weight",), "transpose"),
        f"{path}/bias": Entry((f"{tensor}.bias",)),
    }


def norm(path: str, tensor: str) -> dict[str, Entry]:
    """Return the entries of a LayerNorm: scale and offset."""
    return {
        f"{path}/gamma": Entry((f"{tensor}.weight",)),
        f"{path}/beta": Entry((f"{tensor}.bias",)),
    }


def conv(path: str, tensor: str, bias: bool = False, form: str = "conv") -> dict[str, Entry]:
    """Return the entries of a Conv2d: kernel and, if it has one, bias."""
    kernel = {f"{path}/kernel": Entry((f"{tensor}.weight",), form)}
    return kernel | ({f"{path}/bias": Entry((f"{tensor}.bias",))} if bias else {})


def batch_norm(path: str, tensor: str) -> dict[str, Entry]:
    """Return the entries of a BatchNorm2d: scale, offset and statistics."""
    return {
        **norm(path, tensor),
        f"{path}/moving_mean": Entry((f"{tensor}.running_mean",)),
        f"{path}/moving_variance": Entry((f"{tensor}.running_var",)),
    }


def fused(path: str, tensors: Sequence[str], bias: bool = True) -> dict[str, Entry]:
    """Return the entries of several Linears fused into one Dense: kernel and, if any, bias."""
    kernel = {f"{path}/kernel": Entry(tuple(f"{t}.weight" for t in tensors), "fused")}
    biases = {f"{path}/bias": Entry(tuple(f"{t}.bias" for t in tensors), "fused")}
    return kernel | (biases if bias else {})


def embedding(path: str, tensor: str) -> dict[str, Entry]:
    """Return the entry of an embedding table."""
    return {f"{path}/embeddings": Entry((f"{tensor}.weight",))}


def block(
    path: str,
    layer: str,
    qkv: Sequence[str],
    out: str,
    attention_norm: str,
    up: str,
    down: str,
    output_norm: str,
) -> dict[str, Entry]:
    """Return the entries of an encoder block.

    Args:
        path: path of the Keras block.
        layer: prefix of the block's tensors; the other arguments are names below it.
    """
    return {
        **fused(f"{path}/attention/qkv", [f"{layer}.{part}" for part in qkv]),
        **dense(f"{path}/attention/out", f"{layer}.{out}"),
        **norm(f"{path}/attention_norm", f"{layer}.{attention_norm}"),
        **dense(f"{path}/up", f"{layer}.{up}"),
        **dense(f"{path}/down", f"{layer}.{down}"),
        **norm(f"{path}/output_norm", f"{layer}.{output_norm}"),
    }
