"""Tensors of a checkpoint <-> variables of the encoder, by a table, in both directions.

An entry of a table maps a variable's path to the tensors it is made of and the kind of the
change of form, which is its own inverse's key:

- `same`: as it is;
- `transpose`: PyTorch's Linear keeps [out, in], Keras' Dense [in, out];
- `fused`: three Linears side by side, [in, 3 * out] or [3 * out];
- `conv`: PyTorch's Conv2d keeps [out, in, h, w], Keras [h, w, in, out];
- `depthwise`: there [channels, 1, h, w], here [h, w, channels, 1];
- `averaged`: the mean of several Linears' outputs, each of its own part of the input, as one:
  [n * in, out] or [out].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entry:
    """Where one variable comes from."""

    tensors: tuple[str, ...]
    form: str = "same"


WeightMap = Mapping[str, Entry]
_AXES = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1)}


def read(entry: Entry, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """The variable's value from its tensors."""
    if entry.form == "transpose":
        return tensors[0].T
    if entry.form == "fused":
        return np.concatenate([t.T for t in tensors], axis=-1)
    if entry.form in _AXES:
        return tensors[0].transpose(_AXES[entry.form])
    if entry.form == "averaged":
        whole = np.concatenate if tensors[0].ndim > 1 else sum
        return whole([t.T for t in tensors]) / len(tensors)
    return tensors[0]


def write(entry: Entry, value: np.ndarray) -> list[np.ndarray]:
    """The tensors from the variable's value: `read`, backwards."""
    if entry.form == "transpose":
        return [np.ascontiguousarray(value.T)]
    if entry.form == "fused":
        parts = np.split(value, len(entry.tensors), axis=-1)
        return [np.ascontiguousarray(part.T) for part in parts]
    if entry.form in _AXES:
        return [np.ascontiguousarray(value.transpose(np.argsort(_AXES[entry.form])))]
    if entry.form == "averaged":
        count = len(entry.tensors)
        parts = np.split(value * count, count) if value.ndim > 1 else [value] * count
        return [np.ascontiguousarray(part.T) for part in parts]
    return [value]


def shapes(entry: Entry, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of an entry's tensors from its variable's: those that `write` gives."""
    count = len(entry.tensors)
    if entry.form in _AXES:
        return [tuple(shape[axis] for axis in np.argsort(_AXES[entry.form]))]
    if entry.form == "fused":
        shape = (*shape[:-1], shape[-1] // count)
    if entry.form == "averaged" and len(shape) > 1:
        shape = (shape[0] // count, *shape[1:])
    turned = entry.form in ("transpose", "fused", "averaged")
    return [tuple(shape[::-1] if turned else shape)] * count


def dense(path: str, tensor: str) -> dict[str, Entry]:
    """Kernel and bias of a Linear."""
    return {
        f"{path}/kernel": Entry((f"{tensor}.weight",), "transpose"),
        f"{path}/bias": Entry((f"{tensor}.bias",)),
    }


def norm(path: str, tensor: str) -> dict[str, Entry]:
    """Scale and offset of a LayerNorm."""
    return {
        f"{path}/gamma": Entry((f"{tensor}.weight",)),
        f"{path}/beta": Entry((f"{tensor}.bias",)),
    }


def conv(path: str, tensor: str, bias: bool = False, form: str = "conv") -> dict[str, Entry]:
    """Kernel, and bias where there is one, of a Conv2d."""
    kernel = {f"{path}/kernel": Entry((f"{tensor}.weight",), form)}
    return kernel | ({f"{path}/bias": Entry((f"{tensor}.bias",))} if bias else {})


def batch_norm(path: str, tensor: str) -> dict[str, Entry]:
    """Scale, offset and statistics of a BatchNorm2d."""
    return {
        **norm(path, tensor),
        f"{path}/moving_mean": Entry((f"{tensor}.running_mean",)),
        f"{path}/moving_variance": Entry((f"{tensor}.running_var",)),
    }


def fused(path: str, tensors: Sequence[str], bias: bool = True) -> dict[str, Entry]:
    """Kernel, and bias where there is one, of several Linears in one."""
    kernel = {f"{path}/kernel": Entry(tuple(f"{t}.weight" for t in tensors), "fused")}
    biases = {f"{path}/bias": Entry(tuple(f"{t}.bias" for t in tensors), "fused")}
    return kernel | (biases if bias else {})


def table(path: str, tensor: str) -> dict[str, Entry]:
    """An embedding table."""
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
    """An encoder block; the names of its parts stand below `layer`."""
    return {
        **fused(f"{path}/attention/qkv", [f"{layer}.{part}" for part in qkv]),
        **dense(f"{path}/attention/out", f"{layer}.{out}"),
        **norm(f"{path}/attention_norm", f"{layer}.{attention_norm}"),
        **dense(f"{path}/up", f"{layer}.{up}"),
        **dense(f"{path}/down", f"{layer}.{down}"),
        **norm(f"{path}/output_norm", f"{layer}.{output_norm}"),
    }
