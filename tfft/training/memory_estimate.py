"""How much memory a training step takes, from its graph, without running it.

The gradient and the update are traced for the widest batch; a walk over their operations, in the
order in which they were made, adds up what is alive at each. Weights, gradients and the optimizer's
variables are exact; what is alive between them is the peak of that walk.

A process that trains on a CPU holds more: what was loaded, traced and not yet given back. `process`
is that, by two numbers fitted to measured peaks (MiniLM, 32 rows, `benchmarks/methods.py --cost`).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.model import Model
from tfft.training import optimizers

RUNTIME = 175 * 2**20  # bytes that a process takes beside the model and the step
HELD = 1.45  # times the peak of the walk is what a process holds at the peak of a step

# Their output is their input's memory.
_VIEWS = {
    "Identity",
    "IdentityN",
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "StopGradient",
    "PreventGradient",
    "EnsureShape",
    "Bitcast",
}
# They may write their output over an input of the same size that nothing else reads.
_IN_PLACE = {
    "Add",
    "AddV2",
    "Sub",
    "Mul",
    "RealDiv",
    "BiasAdd",
    "Neg",
    "Exp",
    "Sqrt",
    "Rsqrt",
    "Square",
    "Tanh",
    "TanhGrad",
    "Erf",
    "Relu",
    "Softmax",
    "Maximum",
    "Minimum",
    "SelectV2",
}


def step(model: Model, rows: int, width: int | None = None) -> dict[str, int]:
    """Bytes of `weights`, `gradients`, `optimizer` and `activations` (all else that is
    alive at the peak), with `rows` of `width` tokens at once, or (None) of pictures."""
    weights = sum(_bytes(v) for v in model.weights)
    moving = sum(_bytes(v) for v in model.trainable_variables)
    slots = sum(_bytes(v) for v in optimizers.inner(model.optimizer).variables)
    peak = max(_gradient_peak(model, rows, width), _update_peak(model))
    return {
        "weights": weights,
        "gradients": moving,
        "optimizer": slots,
        "activations": max(0, peak - moving),
    }


def process(found: dict[str, int]) -> int:
    """Bytes that a process grows by when it trains on a CPU, of what `step` found."""
    alive = found["gradients"] + found["activations"]
    return round(found["weights"] + found["optimizer"] + RUNTIME + HELD * alive)


def text(found: dict[str, int], rows: int, width: int | None = None) -> str:
    """The estimate as lines."""
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in found.items())
    total = sum(found.values()) / 2**20
    of = f"rows of {width} tokens" if width is not None else "pictures"
    return (
        f"memory: {total:,.0f} MiB a device, with {rows} {of} ({parts})\n"
        f"        on a CPU the process grows by about {process(found) / 2**20:,.0f} MiB"
    )


def _gradient_peak(model: Model, rows: int, width: int | None) -> int:
    x = {t.name: tf.TensorSpec(_shape(t, rows, width), t.dtype) for t in model.inputs}
    own = getattr(model.loss, "target_width", None)  # of a loss that takes more than class ids
    targets = tf.TensorSpec([rows], tf.int32)
    if own is not None:
        targets = tf.TensorSpec([rows, own(model.output_shape[-1])], tf.float32)
    weight = tf.TensorSpec([rows], tf.float32)
    traced = tf.function(
        lambda x, y, w: model._gradients(x, y, w, tf.constant(float(rows))), autograph=False
    )
    return peak(traced.get_concrete_function(x, targets, weight).graph)


def _shape(tensor: Any, rows: int, width: int | None) -> list[int | None]:
    return [rows, *(width if size is None else size for size in tensor.shape[1:])]


def _update_peak(model: Model) -> int:
    variables = model.trainable_variables
    specs = [tf.TensorSpec(v.shape, v.dtype) for v in variables]

    def update(*gradients: Any) -> None:
        model.optimizer.apply(list(gradients), variables)

    traced = tf.function(update, autograph=False).get_concrete_function(*specs)
    return peak(traced.graph)


def peak(graph: Any) -> int:
    """The most bytes alive at once in a graph, its variables apart."""
    operations = _needed(graph)
    roots: dict[str, str] = {}
    last: dict[str, int] = {}
    size: dict[str, int] = {}
    for at, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[roots.get(tensor.name, tensor.name)] = at
        for tensor in operation.outputs:
            if operation.type in _VIEWS and operation.inputs:
                source = operation.inputs[0].name
                roots[tensor.name] = roots.get(source, source)
            elif operation.type == "ReadVariableOp":
                size[tensor.name] = 0
            else:
                size[tensor.name] = _tensor_bytes(tensor)
    for tensor in _tensors(graph.structured_outputs):
        last[roots.get(tensor.name, tensor.name)] = len(operations)
    return _walk(operations, roots, last, size)


def _needed(graph: Any) -> list[Any]:
    """The operations that TensorFlow runs: those behind an output or a side effect, in order."""
    operations = list(graph.get_operations())
    wanted = [tensor.op for tensor in _tensors(graph.structured_outputs)]
    wanted += [o for o in operations if o.type.startswith(("Assign", "Resource"))]
    wanted += list(graph.control_outputs)
    found: set[Any] = set()
    while wanted:
        operation = wanted.pop()
        if operation not in found:
            found.add(operation)
            wanted += [t.op for t in operation.inputs] + list(operation.control_inputs)
    return [o for o in operations if o in found]


def _walk(
    operations: Sequence[Any], roots: dict[str, str], last: dict[str, int], size: dict[str, int]
) -> int:
    alive = highest = 0
    ending: dict[int, list[str]] = {}
    for name, at in last.items():
        ending.setdefault(at, []).append(name)
    for at, operation in enumerate(operations):
        gone = sum(size.get(name, 0) for name in ending.get(at, ()))
        made = sum(size.get(tensor.name, 0) for tensor in operation.outputs)
        unread = sum(size.get(t.name, 0) for t in operation.outputs if t.name not in last)
        reused = 0
        if operation.type in _IN_PLACE:
            dying = {size.get(name, 0) for name in ending.get(at, ())}
            reused = made if made in dying else 0
        highest = max(highest, alive + made - reused)
        alive += made - gone - unread
    return highest


def _tensors(structure: Any) -> list[Any]:
    return [t for t in keras.tree.flatten(structure) if tf.is_tensor(t)]


def _tensor_bytes(tensor: Any) -> int:
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or tensor.shape.rank is None:
        return 0
    return int(np.prod([d or 1 for d in tensor.shape])) * tensor.dtype.size


def _bytes(variable: keras.Variable) -> int:
    count = int(np.prod(variable.shape)) if variable.shape else 1
    return count * tf.as_dtype(variable.dtype).size
