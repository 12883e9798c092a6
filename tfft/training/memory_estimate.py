"""Estimate of the memory of a training step, from its graph, without running it.

The gradient and the update are traced for the widest batch. A walk over their operations, in the
order of their creation, sums the bytes of the live tensors at each. The bytes of weights, gradients
and optimizer variables are exact; those of the activations are the peak of that walk.

A process that trains on a CPU holds more: libraries, graphs and memory that is not yet returned.
`process` adds it by two constants fitted to measured peaks (MiniLM, 32 rows,
`benchmarks/methods.py --cost`).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.model import Model
from tfft.training import optimizers

RUNTIME = 175 * 2**20  # bytes of a process besides the model and the step
OVERHEAD = 1.45  # bytes of a process at the peak of a step, per byte of live tensors

# The output of these operations shares the memory of their input.
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
# These operations may write their output over an input of the same size that nothing else reads.
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
    """Estimate the memory of one training step on a device.

    Args:
        model: a compiled model.
        rows: rows at once.
        width: tokens of a row; None for images.

    Returns:
        Bytes of `weights`, `gradients`, `optimizer` and `activations`; the last are all other
        tensors that are alive at the peak.
    """
    weights = sum(_bytes(v) for v in model.weights)
    gradients = sum(_bytes(v) for v in model.trainable_variables)
    slots = sum(_bytes(v) for v in optimizers.inner(model.optimizer).variables)
    # The two graphs run one after the other; only the gradients live through both.
    peak = max(_gradient_peak(model, rows, width), _update_peak(model))
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": slots,
        # Gradients are tensors of both graphs and are counted above.
        "activations": max(0, peak - gradients),
    }


def process(estimate: dict[str, int]) -> int:
    """Return the bytes by which a process grows when it trains on a CPU.

    Args:
        estimate: what `step` returned.
    """
    alive = estimate["gradients"] + estimate["activations"]
    return round(estimate["weights"] + estimate["optimizer"] + RUNTIME + OVERHEAD * alive)


def text(estimate: dict[str, int], rows: int, width: int | None = None) -> str:
    """Return an estimate of `step` as two lines of text."""
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in estimate.items())
    total = sum(estimate.values()) / 2**20
    unit = f"rows of {width} tokens" if width is not None else "images"
    return (
        f"memory: {total:,.0f} MiB a device, with {rows} {unit} ({parts})\n"
        f"        on a CPU the process grows by about {process(estimate) / 2**20:,.0f} MiB"
    )


def _gradient_peak(model: Model, rows: int, width: int | None) -> int:
    x = {t.name: tf.TensorSpec(_shape(t, rows, width), t.dtype) for t in model.inputs}
    # A loss with `target_width` takes targets of that width in place of an id for each output.
    target_width = getattr(model.loss, "target_width", None)
    of_tokens = [width] if len(model.output_shape) == 3 and target_width is None else []
    targets, weight = (tf.TensorSpec([rows, *of_tokens], t) for t in (tf.int32, tf.float32))
    if target_width is not None:
        targets = tf.TensorSpec([rows, target_width(model.output_shape[-1])], tf.float32)
    traced = tf.function(
        lambda *xyw: model.gradients(model.options, *xyw, model.step_loss.counts(*xyw)),
        autograph=False,
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
    """Return the largest number of bytes that are alive at once in a graph, without variables."""
    operations = _executed(graph)
    # 1. Who owns the memory of each tensor, how large it is, and who reads it last.
    roots: dict[str, str] = {}  # name of a view -> name of the tensor that owns its memory
    last: dict[str, int] = {}  # name of a tensor -> index of the last operation that reads it
    size: dict[str, int] = {}
    for index, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[roots.get(tensor.name, tensor.name)] = index
        for tensor in operation.outputs:
            if operation.type in _VIEWS and operation.inputs:
                source = operation.inputs[0].name
                roots[tensor.name] = roots.get(source, source)
            elif operation.type == "ReadVariableOp":
                size[tensor.name] = 0  # counted with the weights
            else:
                size[tensor.name] = _tensor_bytes(tensor)
    # 2. Outputs live to the end.
    for tensor in _tensors(graph.structured_outputs):
        last[roots.get(tensor.name, tensor.name)] = len(operations)
    return _walk(operations, roots, last, size)


def _executed(graph: Any) -> list[Any]:
    """Return the operations that TensorFlow runs, in order: those of an output or a side effect.

    TensorFlow prunes the others before it runs a graph.
    """
    operations = list(graph.get_operations())
    pending = [tensor.op for tensor in _tensors(graph.structured_outputs)]
    # Updates of variables are side effects that nothing reads.
    pending += [o for o in operations if o.type.startswith(("Assign", "Resource"))]
    pending += list(graph.control_outputs)
    executed: set[Any] = set()
    while pending:
        operation = pending.pop()
        if operation not in executed:
            executed.add(operation)
            pending += [t.op for t in operation.inputs] + list(operation.control_inputs)
    return [o for o in operations if o in executed]


def _walk(
    operations: Sequence[Any], roots: dict[str, str], last: dict[str, int], size: dict[str, int]
) -> int:
    """Return the peak of the live bytes; a tensor lives from its operation to its last reader."""
    alive = highest = 0
    ending: dict[int, list[str]] = {}  # index of an operation -> tensors that it reads last
    for name, index in last.items():
        ending.setdefault(index, []).append(name)
    for index, operation in enumerate(operations):
        freed = sum(size.get(name, 0) for name in ending.get(index, ()))
        # Outputs are allocated while the inputs still live.
        allocated = sum(size.get(tensor.name, 0) for tensor in operation.outputs)
        unread = sum(size.get(t.name, 0) for t in operation.outputs if t.name not in last)
        reused = 0
        if operation.type in _IN_PLACE:
            freed_sizes = {size.get(name, 0) for name in ending.get(index, ())}
            # In place only where the output has exactly the size of an input that ends here.
            reused = allocated if allocated in freed_sizes else 0
        highest = max(highest, alive + allocated - reused)
        alive += allocated - freed - unread
    return highest


def _tensors(structure: Any) -> list[Any]:
    return [t for t in keras.tree.flatten(structure) if tf.is_tensor(t)]


def _tensor_bytes(tensor: Any) -> int:
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or tensor.shape.rank is None:
        return 0
    # An unknown dimension counts as 1.
    return int(np.prod([d or 1 for d in tensor.shape])) * tensor.dtype.size


def _bytes(variable: keras.Variable) -> int:
    count = int(np.prod(variable.shape)) if variable.shape else 1
    return count * tf.as_dtype(variable.dtype).size
