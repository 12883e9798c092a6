"""The feature cache: compute the output of the frozen stages once and train above it.

A model is split below its lowest trainable layer. Nothing below the split changes from step to
step, so its output for every row is stored (memory-mapped files in the cache, named by a hash of
the frozen weights and of the rows), and the train step reads it instead of the model's inputs.
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
import ml_dtypes  # noqa: F401 -- registers bfloat16 with numpy
import numpy as np
import tensorflow as tf

from tfft.data import Dataset, batches
from tfft.data.prepared import write_once
from tfft.utils import console, keras_internals

BATCH_SIZE = 64  # rows of a batch while the features are computed
NUM_THREADS = 2  # while one batch waits for a core, the other computes
DISK_SHARE = 0.5  # share of the free disk space that `train.cache_features: auto` may fill


@dataclass(frozen=True)
class ModelSplit:
    """A model in two parts: the frozen lower one, and the rest.

    Attributes:
        lower_part: maps the model's inputs to the stored tensors, by name.
        upper_part: maps the stored tensors, and the inputs that it also needs, to the model's
            output.
        compute: `lower_part` as a function that is traced once for all widths.
        shapes: name of a stored tensor -> shape of one row; None is its number of tokens.
        weights: weights of `lower_part`.
        lowest_upper_layer: name of the lowest layer of `upper_part`.
        share: share of the model's multiplications, by the size of their kernels, that is below.
    """

    lower_part: keras.Model
    upper_part: keras.Model
    compute: Callable[[dict[str, np.ndarray]], dict[str, tf.Tensor]]
    shapes: dict[str, tuple[int | None, ...]]
    weights: Sequence[keras.Variable]
    lowest_upper_layer: str
    share: float

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the paths and values of `weights` at the first access."""
        digest = hashlib.sha256()
        for variable in self.weights:
            digest.update(variable.path.encode())
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).data)
        return digest.digest()


def split_model(model: keras.Model) -> ModelSplit | str:
    """Split a functional model below its lowest trainable layer.

    Returns:
        The two parts, or the reason why the model cannot be split.
    """
    # Side of each tensor: "raw" (computed from the inputs without weights), "below" or "above".
    sides: dict[int, str] = {}
    crossing: dict[int, Any] = {}
    inputs_above: dict[int, Any] = {}
    lowest = ""
    reason = "the lowest stage is trainable"
    # 1. Divide the tensors: each takes the highest side of its inputs and its operation.
    for node in keras_internals.nodes_bottom_up(model):
        arguments = node.arguments.keras_tensors
        input_sides = {sides.get(id(t), "raw") for t in arguments}
        side, obstacle = _side(node.operation, input_sides) if arguments else ("raw", "")
        reason = obstacle or reason
        for tensor in node.outputs:
            sides[id(tensor)] = side
        if side == "above":
            for tensor in arguments:
                if sides[id(tensor)] == "below":
                    crossing[id(tensor)] = tensor
                    lowest = lowest or node.operation.name
    # 2. The tensors that cross the split are stored.
    if not crossing:
        return reason
    for tensor in _inputs_above(model, sides):
        inputs_above[id(tensor)] = tensor
    if read := [t.name for t in inputs_above.values() if t.name != "padding_mask"]:
        return f"the lowest stage is trainable of the backbone that reads {', '.join(read)}"
    stored = {f"below_{i}": tensor for i, tensor in enumerate(crossing.values())}
    if any(None in t.shape[2:] for t in stored.values()):
        return "a tensor at the split has a dynamic dimension besides its tokens"
    for name, tensor in stored.items():
        tensor.name = name  # Keras wants each tensor to have its key in a dict of inputs as name
    inputs = {tensor.name: tensor for tensor in model.inputs}
    # 3. Both parts as functional models over the same layers and variables.
    above = {**{t.name: t for t in inputs_above.values()}, **stored}
    below = keras.Model(inputs, stored, name="below")
    # The model's own shapes, in which rows and tokens are None: one trace serves all widths.
    specs = {n: tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in inputs.items()}
    compute = tf.function(
        lambda x: below(x, training=False), input_signature=[specs], autograph=False
    )
    return ModelSplit(
        below,
        keras.Model(above, model.output, name="above"),
        compute,
        {name: tuple(t.shape[1:]) for name, t in stored.items()},
        below.weights,
        lowest,
        _kernel_size(below) / max(1, _kernel_size(model)),
    )


def _kernel_size(model: keras.Model) -> int:
    """Return the number of parameters in kernels; lookups in embedding tables cost no products."""
    kernels = [v for v in model.weights if len(v.shape) > 1 and not v.path.endswith("embeddings")]
    return sum(int(np.prod(v.shape)) for v in kernels)


def _side(operation: Any, input_sides: set[str]) -> tuple[str, str]:
    """Return the side of an operation's output, and the obstacle to storing it (empty: none)."""
    # A frozen layer above a trainable one gets other inputs in every step.
    if "above" in input_sides:
        return "above", ""
    weights = getattr(operation, "weights", [])
    trainable = {id(v) for v in getattr(operation, "trainable_variables", [])}
    if trainable:
        return "above", ""
    if not _deterministic(operation):
        return "above", f"{operation.name} is random, though it has no trainable variables"
    # What is computed from the inputs without weights (a mask) is cheap: it is not stored.
    return ("below" if weights or "below" in input_sides else "raw"), ""


def _deterministic(operation: Any) -> bool:
    """Return whether an operation gives the same output for the same input in every step."""
    if not isinstance(operation, keras.layers.Layer):
        return True
    for layer in keras_internals.flat_layers(operation):
        # Dropout with this attribute is off in a frozen layer, also in training.
        disabled = not layer.trainable and hasattr(layer, "disabled_when_frozen")
        if keras_internals.seed_generators(layer) and not disabled:
            return False
        # Its statistics change in every step.
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return False
    return True


def _inputs_above(model: keras.Model, sides: dict[int, str]) -> list[Any]:
    """Return the model's inputs that the upper part reads other than through stored tensors.

    A padding mask is one: it is computed from the inputs alone, so it is not stored.
    """
    pending: list[Any] = []
    for node in keras_internals.nodes_bottom_up(model):
        arguments = node.arguments.keras_tensors
        if any(sides[id(t)] == "above" for t in node.outputs):
            pending += [t for t in arguments if sides[id(t)] == "raw"]
    inputs = {id(t): t for t in model.inputs}
    producers = {
        id(t): node for node in keras_internals.nodes_bottom_up(model) for t in node.outputs
    }
    inputs_above: dict[int, Any] = {}
    while pending:
        tensor = pending.pop()
        if id(tensor) in inputs:
            inputs_above[id(tensor)] = tensor
        else:
            pending += producers[id(tensor)].arguments.keras_tensors
    return list(inputs_above.values())


class CachedFeatures(batches.PythonRows):
    """The stored tensors of a split, as rows of batches (`data.batches.Rows`).

    Args:
        split: the split whose rows are stored.
        arrays: stored tensors by name: [N, ...], or ragged: [tokens of all rows, D].
        ragged: names of the ragged arrays.
        masked: whether the upper part takes a padding mask.

    Attributes:
        uniform: whether batches with equal numbers of rows have equal shapes at any width.
    """

    def __init__(
        self, split: Dataset, arrays: dict[str, np.ndarray], ragged: set[str], masked: bool
    ):
        self._arrays, self._ragged, self._masked = arrays, ragged, masked
        self.uniform = not ragged and not masked
        self._lengths = split.lengths
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the stored tensors of a batch as float32; if `masked`, also `padding_mask`.

        The mask is int32 [B, width].
        """
        positions, width = batch.positions, batch.width
        out = {}
        if self._masked:
            lengths = self._lengths[positions]
            out["padding_mask"] = (np.arange(width) < lengths[:, None]).astype(np.int32)
        for name, values in self._arrays.items():
            if name not in self._ragged:
                out[name] = values[positions].astype(np.float32)
                continue
            padded = np.zeros((len(positions), width, values.shape[-1]), np.float32)  # [B, T, D]
            for row, position in enumerate(positions):
                start, stop = self._offsets[position : position + 2]
                padded[row, : stop - start] = values[start:stop]
            out[name] = padded
        return out

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the specs of `arrays` for batches of `rows` rows; None: of any size."""
        specs = {"padding_mask": tf.TensorSpec([rows, width], tf.int32)} if self._masked else {}
        for name, values in self._arrays.items():
            token_axis = [width] if name in self._ragged else []
            specs[name] = tf.TensorSpec([rows, *token_axis, *values.shape[1:]], tf.float32)
        return specs


class CyclingCache(batches.PythonRows):
    """Stored tensors of several augmented variants of a split; each epoch reads the next one.

    Args:
        variants: features of each variant.
        per_epoch: batches of an epoch.
    """

    def __init__(self, variants: Sequence[CachedFeatures], per_epoch: int):
        self._variants, self._per_epoch = variants, per_epoch
        self.uniform = variants[0].uniform

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return a batch from the variant of its epoch (see `CachedFeatures.arrays`)."""
        epoch = batch.draw // self._per_epoch
        return self._variants[epoch % len(self._variants)].arrays(batch)

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the specs of `arrays` for batches of `rows` rows; None: of any size."""
        return self._variants[0].spec(rows, width)


def size(model_split: ModelSplit, splits: Sequence[Dataset], dtype: str) -> int:
    """Return the number of bytes that the stored tensors of some splits take."""
    rows, tokens = sum(len(s.examples) for s in splits), sum(int(s.lengths.sum()) for s in splits)
    counts = [
        # Ragged tensors are stored without padding: tokens of all rows, [tokens, D].
        (tokens if shape[0] is None else rows) * int(np.prod([n for n in shape if n is not None]))
        for shape in model_split.shapes.values()
    ]
    return sum(counts) * np.dtype(dtype).itemsize


def free_bytes(folder: Path) -> int:
    """Return the number of bytes on the disk that `train.cache_features: auto` may fill."""
    folder.mkdir(parents=True, exist_ok=True)
    return int(DISK_SHARE * shutil.disk_usage(folder).free)


def store(
    model_split: ModelSplit,
    split: Dataset,
    rows: batches.Rows,
    dtype: str,
    folder: Path,
    key: str,
) -> CachedFeatures:
    """Load the stored tensors of a split from the cache; compute and store them on a miss.

    Args:
        model_split: the model whose lower part computes them.
        split: the rows that are stored.
        rows: inputs of these rows.
        dtype: `float16`, `bfloat16` or `float32`, of the stored values.
        folder: the cache directory.
        key: names everything that the values depend on besides the weights below and the rows.
    """
    # The name holds everything that the values depend on, so a folder never becomes stale.
    folder = folder / "prefix" / _name(model_split, split, dtype, key)
    ragged = {name for name, shape in model_split.shapes.items() if shape[0] is None}
    write_once(
        folder, lambda temporary: _compute(model_split, split, rows, dtype, temporary, ragged)
    )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in model_split.shapes}
    if dtype == "bfloat16":  # the .npy format has no such type: the files hold its bits
        arrays = {name: values.view("bfloat16") for name, values in arrays.items()}
    return CachedFeatures(split, arrays, ragged, "padding_mask" in model_split.upper_part.input)


def _compute(
    model_split: ModelSplit,
    split: Dataset,
    rows: batches.Rows,
    dtype: str,
    folder: Path,
    ragged: set[str],
) -> dict[str, Any]:
    """Write the values of all rows to files in a folder and return their metadata."""
    offsets = np.concatenate([[0], np.cumsum(split.lengths)])  # [E + 1]
    examples = len(split.examples)
    file_dtype = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode="w+",
            dtype=file_dtype,
            shape=(int(offsets[-1]), shape[-1]) if name in ragged else (examples, *shape),
        )
        for name, shape in model_split.shapes.items()
    }
    if hasattr(os, "posix_fallocate"):
        # Reserve the space: on a full disk, writing into a mapped hole would kill the process with
        # SIGBUS, while this raises an OSError.
        for name, file in files.items():
            with open(folder / f"{name}.npy", "r+b") as allocated:
                os.posix_fallocate(allocated.fileno(), 0, file.offset + file.nbytes)
    # Sorted by length: the least padding to compute.
    batch_list = batches.plan_sorted(split.lengths, BATCH_SIZE)

    def write_batch(batch: batches.Batch) -> None:
        values = model_split.compute(rows.arrays(batch))
        for name, file in files.items():
            array = values[name].numpy().astype(dtype)
            array = array.view(np.uint16) if dtype == "bfloat16" else array
            if name not in ragged:
                file[batch.positions] = array
                continue
            for row, position in enumerate(batch.positions):
                start, stop = offsets[position : position + 2]
                file[start:stop] = array[row, : stop - start]

    with ThreadPoolExecutor(NUM_THREADS) as pool:  # no two batches write the same rows
        for done, _ in enumerate(pool.map(write_batch, batch_list), 1):
            console.progress(
                f"cache: {done:,} of {len(batch_list):,} batches", last=done == len(batch_list)
            )
    for file in files.values():
        file.flush()
    return {"rows": examples, "dtype": dtype}


def _name(model_split: ModelSplit, split: Dataset, dtype: str, key: str) -> str:
    """Return a hash of everything that the stored values depend on."""
    digest = hashlib.sha256(f"{version('tfft')} {dtype} {key} {model_split.shapes}".encode())
    digest.update(split.prepared.folder.name.encode())
    digest.update(np.ascontiguousarray(split.rows).tobytes())
    # The layers too: two splits of one model may share weights and shapes.
    digest.update(",".join(layer.name for layer in model_split.lower_part.layers).encode())
    digest.update(model_split.digest)
    return digest.hexdigest()[:24]
