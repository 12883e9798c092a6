"""The cached prefix: what frozen stages put out is computed once, and later epochs start there.

A model is cut where it begins to move. Below the cut nothing changes from step to step, so its
output for every row is stored (a memory-mapped file in the cache, by a hash of the frozen weights
and of the rows), and the train step reads it in place of the tokens.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import ml_dtypes  # noqa: F401 -- teaches numpy bfloat16
import numpy as np
import tensorflow as tf

from tfft.data import Dataset, batches
from tfft.data.prepared import written
from tfft.utils import console

BATCH = 64  # rows at once while it is computed
AT_ONCE = 2  # batches at work together: where one waits for a core, the other computes
SHARE = 0.5  # of the free disk that `auto` may fill


@dataclass(frozen=True)
class ModelSplit:
    """A model in two parts.

    Attributes:
        below: the model's inputs -> the tensors that are stored, by name.
        above: those tensors, and the inputs that it still needs -> the model's output.
        compute: `below` as a function that is traced once for all widths.
        shapes: name -> shape of one row of what is stored; None stands for its tokens.
        weights: those of `below`.
        lowest: name of the lowest layer above.
        share: of the model's products, by the size of their kernels, that is below.
    """

    below: keras.Model
    above: keras.Model
    compute: Callable[[dict[str, np.ndarray]], dict[str, tf.Tensor]]
    shapes: dict[str, tuple[int | None, ...]]
    weights: Sequence[keras.Variable]
    lowest: str
    share: float

    @cached_property
    def digest(self) -> bytes:
        """A hash of the values of `weights`, as they were when it was first asked for."""
        found = hashlib.sha256()
        for variable in self.weights:
            found.update(variable.path.encode())
            found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).data)
        return found.digest()


def cut(model: keras.Model) -> ModelSplit | str:
    """Cut a functional model where it begins to move; a reason where there is no such cut."""
    place: dict[int, str] = {}  # of each tensor: raw (of the inputs alone), below, above
    crossing: dict[int, Any] = {}
    needed: dict[int, Any] = {}
    lowest = ""
    reason = "the lowest stage moves"
    for node in _in_order(model):
        taken = node.arguments.keras_tensors
        found = {place.get(id(t), "raw") for t in taken}
        where, why = _place(node.operation, found) if taken else ("raw", "")
        reason = why or reason
        for tensor in node.outputs:
            place[id(tensor)] = where
        if where == "above":
            for tensor in taken:
                if place[id(tensor)] == "below":
                    crossing[id(tensor)] = tensor
                    lowest = lowest or node.operation.name
    if not crossing:
        return reason
    named = {f"below_{i}": tensor for i, tensor in enumerate(crossing.values())}
    if any(None in t.shape[2:] for t in named.values()):
        return "what crosses the cut has no fixed size but for its tokens"
    for name, tensor in named.items():
        tensor.name = name  # as Keras wants the keys of a dict of inputs
    inputs = {tensor.name: tensor for tensor in model.inputs}
    for tensor in _inputs_above(model, place):
        needed[id(tensor)] = tensor
    above = {**{t.name: t for t in needed.values()}, **named}
    below = keras.Model(inputs, named, name="below")
    specs = {n: tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in inputs.items()}
    compute = tf.function(
        lambda x: below(x, training=False), input_signature=[specs], autograph=False
    )
    return ModelSplit(
        below,
        keras.Model(above, model.output, name="above"),
        compute,
        {name: tuple(t.shape[1:]) for name, t in named.items()},
        below.weights,
        lowest,
        _products(below) / max(1, _products(model)),
    )


def _products(model: keras.Model) -> int:
    """Parameters that every token is multiplied with: kernels, not tables."""
    kernels = [v for v in model.weights if len(v.shape) > 1 and not v.path.endswith("embeddings")]
    return sum(int(np.prod(v.shape)) for v in kernels)


def _place(operation: Any, found: set[str]) -> tuple[str, str]:
    """Where an operation's output belongs, and what keeps it from being stored."""
    if "above" in found:
        return "above", ""
    weights = getattr(operation, "weights", [])
    moving = {id(v) for v in getattr(operation, "trainable_variables", [])}
    if moving:
        return "above", ""
    if not _deterministic(operation):
        return "above", f"{operation.name} is random, though nothing in it moves"
    return ("below" if weights or "below" in found else "raw"), ""


def _deterministic(operation: Any) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return True
    for layer in operation._flatten_layers():
        off = not layer.trainable and hasattr(layer, "off_where_frozen")
        if getattr(layer, "_seed_generators", ()) and not off:
            return False
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return False
    return True


def _in_order(model: keras.Model) -> list[Any]:
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth]]


def _inputs_above(model: keras.Model, place: dict[int, str]) -> list[Any]:
    """The model's inputs from which something above is computed without the stored tensors."""
    wanted: list[Any] = []
    for node in _in_order(model):
        taken = node.arguments.keras_tensors
        if any(place[id(t)] == "above" for t in node.outputs):
            wanted += [t for t in taken if place[id(t)] == "raw"]
    inputs = {id(t): t for t in model.inputs}
    made = {id(t): node for node in _in_order(model) for t in node.outputs}
    found: dict[int, Any] = {}
    while wanted:
        tensor = wanted.pop()
        if id(tensor) in inputs:
            found[id(tensor)] = tensor
        else:
            wanted += made[id(tensor)].arguments.keras_tensors
    return list(found.values())


class CachedFeatures(batches.Whole):
    """The stored tensors of a split, as rows of batches (`data.batches.Rows`).

    Args:
        arrays: name -> [N, ...], or [tokens of all rows, D] one row after another.
        ragged: the names of the latter.
        masked: whether the part above asks for the padding mask.

    Attributes:
        uniform: whether batches of as many rows have the same shapes, whatever their width.
    """

    def __init__(
        self, split: Dataset, arrays: dict[str, np.ndarray], ragged: set[str], masked: bool
    ):
        self._arrays, self._ragged, self._masked = arrays, ragged, masked
        self.uniform = not ragged and not masked
        self._lengths = split.lengths
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """A batch: the stored tensors, float32, and perhaps `padding_mask`, int32 [B, width]."""
        positions, width = batch.positions, batch.width
        out = {}
        if self._masked:
            lengths = self._lengths[positions]
            out["padding_mask"] = (np.arange(width) < lengths[:, None]).astype(np.int32)
        for name, values in self._arrays.items():
            if name not in self._ragged:
                out[name] = values[positions].astype(np.float32)
                continue
            filled = np.zeros((len(positions), width, values.shape[-1]), np.float32)
            for at, position in enumerate(positions):
                first, last = self._offsets[position : position + 2]
                filled[at, : last - first] = values[first:last]
            out[name] = filled
        return out

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`."""
        specs = {"padding_mask": tf.TensorSpec([rows, width], tf.int32)} if self._masked else {}
        for name, values in self._arrays.items():
            middle = [width] if name in self._ragged else []
            specs[name] = tf.TensorSpec([rows, *middle, *values.shape[1:]], tf.float32)
        return specs


class CyclingCache(batches.Whole):
    """Stored tensors of several draws of a split's rows, one for each epoch, in turn.

    Args:
        stored: of each draw.
        per_epoch: batches of an epoch.
    """

    def __init__(self, stored: Sequence[CachedFeatures], per_epoch: int):
        self._stored, self._per_epoch = stored, per_epoch
        self.uniform = stored[0].uniform

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """As `CachedFeatures`'s, of the draw of the batch's epoch."""
        epoch = batch.draw // self._per_epoch
        return self._stored[epoch % len(self._stored)].arrays(batch)

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`."""
        return self._stored[0].spec(rows, width)


def size(made: ModelSplit, splits: Sequence[Dataset], dtype: str) -> int:
    """Bytes that the stored tensors of some splits take."""
    rows, tokens = sum(map(len, splits)), sum(int(s.lengths.sum()) for s in splits)
    counts = [
        (tokens if shape[0] is None else rows) * int(np.prod([n for n in shape if n is not None]))
        for shape in made.shapes.values()
    ]
    return sum(counts) * np.dtype(dtype).itemsize


def room(folder: Path) -> int:
    """Bytes that `auto` may take of the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    return int(SHARE * shutil.disk_usage(folder).free)


def store(
    made: ModelSplit, split: Dataset, rows: batches.Rows, dtype: str, folder: Path, key: str
) -> CachedFeatures:
    """The stored tensors of a split: from the cache, or computed and put there.

    `key` names all that the values depend on beside the weights below the cut and the rows.
    """
    folder = folder / "prefix" / _name(made, split, dtype, key)
    ragged = {name for name, shape in made.shapes.items() if shape[0] is None}
    written(folder, lambda temporary: _compute(made, split, rows, dtype, temporary, ragged))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in made.shapes}
    if dtype == "bfloat16":  # numpy's files know no such type: they hold its bits
        arrays = {name: values.view("bfloat16") for name, values in arrays.items()}
    return CachedFeatures(split, arrays, ragged, "padding_mask" in made.above.input)


def _compute(
    made: ModelSplit, split: Dataset, rows: batches.Rows, dtype: str, folder: Path, ragged: set[str]
) -> dict[str, Any]:
    """Write the values of all rows to files of a folder; what its meta data says."""
    offsets = np.concatenate([[0], np.cumsum(split.lengths)])
    kind = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode="w+",
            dtype=kind,
            shape=(int(offsets[-1]), shape[-1]) if name in ragged else (len(split), *shape),
        )
        for name, shape in made.shapes.items()
    }
    if hasattr(os, "posix_fallocate"):
        # Where the disk is full, a write to a file with holes ends the process by a signal.
        for name, file in files.items():
            with open(folder / f"{name}.npy", "r+b") as allocated:
                os.posix_fallocate(allocated.fileno(), 0, file.offset + file.nbytes)
    planned = batches.in_order(split.lengths, BATCH)

    def put(batch: batches.Batch) -> None:
        values = made.compute(rows.arrays(batch))
        for name, file in files.items():
            found = values[name].numpy().astype(dtype)
            found = found.view(np.uint16) if dtype == "bfloat16" else found
            if name not in ragged:
                file[batch.positions] = found
                continue
            for at, position in enumerate(batch.positions):
                first, last = offsets[position : position + 2]
                file[first:last] = found[at, : last - first]

    with ThreadPoolExecutor(AT_ONCE) as pool:  # each batch has rows of its own in the files
        for number, _ in enumerate(pool.map(put, planned), 1):
            console.progress(
                f"cache: {number:,} of {len(planned):,} batches", last=number == len(planned)
            )
    for file in files.values():
        file.flush()
    return {"rows": len(split), "dtype": dtype}


def _name(made: ModelSplit, split: Dataset, dtype: str, key: str) -> str:
    """A hash of everything that the stored values depend on."""
    digest = hashlib.sha256(f"{version('tfft')} {dtype} {key} {made.shapes}".encode())
    digest.update(split.prepared.folder.name.encode())
    digest.update(np.ascontiguousarray(split.rows).tobytes())
    digest.update(",".join(layer.name for layer in made.below.layers).encode())
    digest.update(made.digest)
    return digest.hexdigest()[:24]
