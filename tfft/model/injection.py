"""Adapters on the linear layers of a built model: the mechanism behind LoRA, bottlenecks and IA3.

A `LinearTarget` is a linear map that a config can name: a Dense or EinsumDense layer, or one part
of a fused layer (query, key and value in one product). An `Adapter` transforms the input and the
output of its target. The pretrained layers keep their variables and paths: adapters are attached
to them, and can be detached, merged into the kernels, or replaced by other adapters.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.model.wrapping import Call, Order, wrap_call
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class LinearTarget:
    """A linear map [..., inputs] -> [..., outputs] of a model.

    Attributes:
        name: path of the layer, or of the part of a fused layer: `block_0/attention/query`.
        layer: the Dense or EinsumDense layer that computes it.
        inputs: width of the input.
        outputs: width of the output.
        start: its first column among the outputs of the layer.
    """

    name: str
    layer: keras.layers.Layer
    inputs: int
    outputs: int
    start: int = 0

    @property
    def columns(self) -> slice:
        """Columns of the target among the outputs of its layer."""
        return slice(self.start, self.start + self.outputs)

    @property
    def is_whole_layer(self) -> bool:
        """Whether the target is its entire layer, not a part of a fused one."""
        # Adapters of input need this: the parts of a fused layer share their input.
        return self.outputs == _hook(self.layer).outputs

    @property
    def policy(self) -> keras.DTypePolicy:
        """Dtype policy of the layer."""
        return self.layer.dtype_policy

    def kernel(self) -> Any:
        """Return the pretrained kernel, [inputs, outputs]."""
        return _hook(self.layer).kernel()[:, self.columns]

    def bias(self) -> Any:
        """Return the bias, [outputs], or 0.0 for a layer without a bias."""
        bias = self.layer.bias
        return 0.0 if bias is None else ops.reshape(bias, [-1])[self.columns]


class Adapter(keras.layers.Layer):
    """Base class of the layers that change the input or output of a `LinearTarget`."""

    def create(self, target: LinearTarget) -> None:
        """Create the variables for a target; subclasses implement this."""
        raise NotImplementedError

    def transform_input(self, x: Any, training: bool) -> Any:
        """Return the new input of the layer, [..., inputs]; for targets that are whole layers."""
        return x

    def transform_output(self, x: Any, y: Any, training: bool) -> Any:
        """Return the new output of the target, before the activation of its layer.

        Args:
            x: input of the layer, [..., inputs].
            y: output of the target, [..., outputs], with the bias.
            training: whether the model is called in training mode.
        """
        return y

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the kernel and bias that alone compute the same, or None where none do."""
        return None


def linear_targets(model: keras.Model) -> list[LinearTarget]:
    """Return every linear map of a model, bottom to top, heads included; each layer once."""
    index = {variable.path: i for i, variable in enumerate(model.weights)}
    layers = [
        layer
        for layer in keras_internals.flat_layers(model, include_self=False)
        if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense) and layer.built
    ]
    # The order of `weights` is that of the graph, bottom to top.
    layers.sort(key=lambda layer: index.get(layer.variables[0].path, len(index)))
    return [target for layer in layers for target in _targets_of_layer(layer)]


def select_targets(model: keras.Model, pattern: str, key: str) -> list[LinearTarget]:
    """Return the linear targets of the backbone whose names match a regular expression.

    Args:
        model: backbone and head; targets of the head are never selected.
        pattern: regular expression, searched anywhere in the name.
        key: config key of the pattern, for error messages.

    Raises:
        UserError: `pattern` is not a regular expression, or matches no target.
    """
    # The head is trained anyway.
    targets = [t for t in linear_targets(model) if not t.name.startswith("head/")]
    try:
        selected = [t for t in targets if re.search(pattern, t.name)]
    except re.error as error:
        raise UserError(
            f"{key}: must be a regular expression: {error}. Received: {pattern!r}"
        ) from None
    if not targets:
        raise UserError(
            f"{key}: must match a dense layer, and the backbone has none. Received: {pattern!r}"
        )
    if not selected:
        names = dict.fromkeys(re.sub(r"\d+", "0", t.name) for t in targets)
        raise UserError(f"{key}: must match one of {', '.join(names)}. Received: {pattern!r}")
    return selected


def attach(
    targets: Sequence[LinearTarget], make_adapter: Callable[[LinearTarget], Adapter]
) -> list[Adapter]:
    """Attach an adapter to each target; its variables are `<target>/<adapter>/...`.

    Adapters on one target apply in the order in which they are attached: each transforms the
    output of the previous ones.

    Returns:
        The adapters, in the order of the targets.
    """
    adapters = []
    for target in targets:
        adapter = make_adapter(target)
        with variable_scope(target.name):
            adapter.create(target)
        # `create` made the variables, and `call` is never used, so Keras would never set this.
        adapter.built = True
        hook = _hook(target.layer)
        hook.adapters.append((target, adapter))
        hook.track()
        adapters.append(adapter)
    return adapters


def install(layer: keras.layers.Layer, attribute: str, value: Any) -> None:
    """Set an attribute that a layer reads (a prefix, a prompt), so that `detach` can undo it."""
    # Through `__dict__`: Keras would track the layers in an assigned dictionary.
    installed = layer.__dict__.setdefault("_tfft_installed", {})
    installed[attribute] = (getattr(layer, attribute), value)
    _set_attribute(layer, attribute, value)


def detach(model: keras.Model) -> "Record":
    """Remove every adapter and installed attribute, and return them for `reattach`."""
    hooked = []
    for hook in _hooks(model):
        hooked.append((hook, hook.adapters))
        hook.adapters = []
        hook.track()
    installed = []
    # `pop`: `reattach` installs the attributes again, and records the original values anew.
    for layer in keras_internals.flat_layers(model, include_self=False):
        for attribute, (original, value) in layer.__dict__.pop("_tfft_installed", {}).items():
            installed.append((layer, attribute, value))
            _set_attribute(layer, attribute, original)
    return hooked, installed


def reattach(record: "Record") -> None:
    """Attach again what `detach` removed."""
    hooked, installed = record
    for hook, adapters in hooked:
        hook.adapters = adapters
        hook.track()
    for layer, attribute, value in installed:
        install(layer, attribute, value)


def _set_attribute(layer: keras.layers.Layer, attribute: str, value: Any) -> None:
    """Set an attribute; a layer as its value is tracked, and the previous one no longer is."""
    previous = getattr(layer, attribute)
    if isinstance(previous, keras.layers.Layer):
        keras_internals.untrack_layer(layer, previous)
    if isinstance(value, keras.layers.Layer):
        keras_internals.track_layer(layer, value)
    # Keras refuses new layers and variables through `setattr` once a layer is built.
    layer.__dict__[attribute] = value


@contextmanager
def merged(model: keras.Model) -> Iterator[list[str]]:
    """Merge adapters into the kernels within the context, where that is exact.

    Yields the paths of the merged layers. On exit the kernels, biases and adapters are restored to
    the bit. A function traced outside of the context must not be called inside, nor the reverse.
    """
    saved = []
    for hook in _hooks(model):
        if hook.adapters and (values := hook.merged_values()) is not None:
            # The values before the merge are copied and assigned back: subtracting the delta would
            # round.
            saved.append((hook, hook.adapters, hook.exchange(*values)))
            hook.adapters = []
            hook.track()
    try:
        yield [hook.layer.path for hook, _, _ in saved]
    finally:
        for hook, adapters, values in saved:
            hook.exchange(*values)
            hook.adapters = adapters
            hook.track()


def layer_path(layer: keras.layers.Layer) -> str:
    """Return the common path of a layer's variables, without their own names."""
    return layer.variables[0].path.rsplit("/", 1)[0]


def replace_kernel(
    layer: keras.layers.Layer, make_replacement: Callable[[np.ndarray], Any]
) -> None:
    """Replace a layer's kernel by another layer, and delete the kernel variable.

    Args:
        layer: Dense or EinsumDense layer.
        make_replacement: kernel [inputs, outputs], float32 -> a layer with `kernel()` and
            `product(x, training)`. Its variables are `<layer>/<replacement>/...`.
    """
    hook = _hook(layer)
    with variable_scope(layer_path(layer)):
        hook.replace_matmul(
            make_replacement(np.array(ops.convert_to_numpy(hook.kernel()), np.float32))
        )
    keras_internals.delete_kernel(layer)


def replace_matmul(
    layer: keras.layers.Layer,
    make_replacement: Callable[[Callable[[], Any], np.ndarray], Any],
) -> None:
    """Replace the product of a layer by that of another layer; the kernel variable stays.

    Args:
        layer: Dense or EinsumDense layer.
        make_replacement: (function that returns the kernel variable as [inputs, outputs], its
            present value) -> a layer as in `replace_kernel`.
    """
    hook = _hook(layer)
    with variable_scope(layer_path(layer)):
        value = np.array(ops.convert_to_numpy(hook.kernel()), np.float32)
        hook.replace_matmul(make_replacement(hook.layer_kernel, value))


class LinearHook:
    """Wrapper around the `call` of a Dense or EinsumDense layer that has adapters.

    The original call computes the product and the bias. The activation is applied here, after the
    adapters.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer = layer
        self.inputs, self.outputs = _widths(layer)
        self.adapters: list[tuple[LinearTarget, Adapter]] = []
        self._replacement: Any = None  # layer that computes the product instead
        self.activation = layer.activation
        layer.activation = keras.activations.linear
        wrap_call(layer, self._wrap, Order.LINEAR)
        # In the dictionary: Keras would track the hook as an attribute.
        layer.__dict__["_tfft_hook"] = self
        self._tracked: list[Adapter] = []

    def _wrap(self, call: Call) -> Call:
        self._original_call = call
        return self

    def __call__(self, inputs: Any, training: Any = None) -> Any:
        """Compute the layer's output with its adapters; same shapes as the original call."""
        # None, Keras' value outside of a training loop, means inference.
        training = bool(training)
        if not self.adapters:
            # Nothing attached: no reshaping, so the graph is that of the original layer.
            return self.activation(self._product(inputs, training))
        x = self._flatten(inputs, self.inputs)  # [..., inputs]
        for _, adapter in self.adapters:
            x = adapter.transform_input(x, training)
        y = self._product(self._restore_shape(x, inputs), training)  # with bias
        shape = ops.shape(y)
        parts = self._split(self._flatten(y, self.outputs))  # (column, [..., width])
        for target, adapter in self.adapters:
            index = next(i for i, (start, _) in enumerate(parts) if start == target.start)
            parts[index] = (
                target.start,
                adapter.transform_output(x, parts[index][1], training),
            )
        # Columns without an adapter are parts too, so the parts always add up to the layer's
        # output.
        y = ops.concatenate([p for _, p in parts], -1) if len(parts) > 1 else parts[0][1]
        return self.activation(ops.reshape(y, shape))

    def replace_matmul(self, replacement: Any) -> None:
        """Use `replacement.product` for the product, and track the replacement layer."""
        keras_internals.track_layer(self.layer, replacement)
        self._replacement = replacement

    def _product(self, inputs: Any, training: bool) -> Any:
        """Compute product and bias, without activation and adapters."""
        if self._replacement is None:
            return self._original_call(inputs)
        y = self._replacement.product(self._flatten(inputs, self.inputs), training)
        bias = self.layer.bias
        if bias is not None:
            # The bias of an EinsumDense may be [H, d]; here it is [outputs], and the reshape
            # restores it.
            y = y + ops.cast(ops.reshape(bias, [-1]), y.dtype)
        tail = [self.outputs] if bias is None else bias.shape
        return ops.reshape(y, [*ops.shape(y)[:-1], *tail])

    def kernel(self) -> Any:
        """Return the kernel in use, [inputs, outputs]."""
        return self.layer_kernel() if self._replacement is None else self._replacement.kernel()

    def layer_kernel(self) -> Any:
        """Return the layer's kernel variable as [inputs, outputs]."""
        return ops.reshape(self.layer.kernel, [self.inputs, self.outputs])

    def track(self) -> None:
        """Make the layer track exactly the adapters that are attached now."""
        for adapter in self._tracked:
            keras_internals.untrack_layer(self.layer, adapter)
        self._tracked = [adapter for _, adapter in self.adapters]
        for adapter in self._tracked:
            keras_internals.track_layer(self.layer, adapter)

    def merged_values(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return kernel and bias with all adapters merged; None if an adapter cannot be merged."""
        # `replace_kernel` deleted the kernel (qlora): there is nothing to merge into.
        if not keras_internals.has_kernel(self.layer):
            return None
        kernel = np.array(ops.convert_to_numpy(self.kernel()), np.float32)
        layer_bias = self.layer.bias
        bias = np.zeros(self.outputs, np.float32)
        if layer_bias is not None:
            bias = np.array(ops.convert_to_numpy(layer_bias), np.float32).reshape(-1)
        # In order of attachment, each on the result of those before, as in the forward pass.
        for target, adapter in self.adapters:
            values = adapter.merge(kernel[:, target.columns], bias[target.columns])
            if values is None:
                return None
            kernel[:, target.columns], bias[target.columns] = values
        if layer_bias is None and bias.any():
            return None  # the merged bias needs a variable that the layer does not have
        return kernel, None if layer_bias is None else bias

    def exchange(
        self, kernel: np.ndarray, bias: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Assign kernel and bias, and return their previous values in the layer's shapes."""
        layer = self.layer
        previous = (
            np.array(ops.convert_to_numpy(layer.kernel)),
            None if layer.bias is None else np.array(ops.convert_to_numpy(layer.bias)),
        )
        layer.kernel.assign(kernel.reshape(layer.kernel.shape))
        if bias is not None:
            layer.bias.assign(bias.reshape(layer.bias.shape))
        return previous

    def _split(self, y: Any) -> list[tuple[int, Any]]:
        """Split the output at the boundaries of the targets into (first column, values)."""
        starts = sorted({0, *(t.start for t, _ in self.adapters)})
        ends = {t.start + t.outputs for t, _ in self.adapters}
        boundaries = sorted({*starts, *ends} - {self.outputs})
        values = ops.split(y, boundaries[1:], axis=-1) if len(boundaries) > 1 else [y]
        return list(zip(boundaries, values, strict=True))

    def _flatten(self, x: Any, width: int) -> Any:
        """Join the last axes of an EinsumDense layer ([B, T, H, d]) into one of `width`."""
        return x if x.shape[-1] == width else ops.reshape(x, [*ops.shape(x)[:2], width])

    def _restore_shape(self, x: Any, inputs: Any) -> Any:
        """Undo `_flatten`: give `x` the shape of `inputs`."""
        return x if x.shape[-1] == inputs.shape[-1] else ops.reshape(x, ops.shape(inputs))


def _targets_of_layer(layer: keras.layers.Layer) -> list[LinearTarget]:
    """Return the target of a layer, or one per part of a fused layer; none if it is not linear."""
    path = layer_path(layer)
    try:
        inputs, outputs = _widths(layer)
    except ValueError:
        return []
    parts = getattr(layer, "parts", None)
    if not parts:
        return [LinearTarget(path, layer, inputs, outputs)]
    parent, width = path.rsplit("/", 1)[0], outputs // len(parts)
    return [
        LinearTarget(f"{parent}/{part}", layer, inputs, width, i * width)
        for i, part in enumerate(parts)
    ]


def _widths(layer: keras.layers.Layer) -> tuple[int, int]:
    """Return the inputs and outputs of the kernel seen as a matrix.

    Raises:
        ValueError: the layer is an EinsumDense that is no linear map of the last axes.
    """
    hook = layer.__dict__.get("_tfft_hook")
    if hook is not None:
        return hook.inputs, hook.outputs
    shape = tuple(layer.kernel.shape)
    if isinstance(layer, keras.layers.Dense):
        return shape[0], shape[1]
    input_axes, rest = layer.equation.replace(" ", "").split(",")
    kernel_axes, output_axes = rest.split("->")
    # A linear map of the last axes reads like "abc,cde->abde": the kernel's first axes are summed
    # and end the input, its other axes end the output.
    summed_axes = [c for c in kernel_axes if c not in output_axes]
    new_axes = kernel_axes[len(summed_axes) :]
    if not (
        kernel_axes.startswith("".join(summed_axes)) and input_axes.endswith("".join(summed_axes))
    ):
        raise ValueError(f"not a linear map of the last axes: {layer.equation}")
    if not output_axes.endswith(new_axes):
        raise ValueError(f"not a linear map of the last axes: {layer.equation}")
    return int(np.prod(shape[: len(summed_axes)])), int(np.prod(shape[len(summed_axes) :]))


def _hook(layer: keras.layers.Layer) -> LinearHook:
    """Return the hook of a layer; create it on first use."""
    return layer.__dict__.get("_tfft_hook") or LinearHook(layer)


def _hooks(model: keras.Model) -> list[LinearHook]:
    layers = keras_internals.flat_layers(model, include_self=False)
    return [h for layer in layers if (h := layer.__dict__.get("_tfft_hook")) is not None]


@contextmanager
def variable_scope(path: str) -> Iterator[None]:
    """Create variables below `path` within the context; `/` separates nested name scopes."""
    with ExitStack() as stack:
        for name in path.split("/"):
            stack.enter_context(keras.name_scope(name))
        yield


# Each hook with its adapters, and each installed attribute: (layer, attribute, value).
Record = tuple[
    list[tuple[LinearHook, list[tuple[LinearTarget, Adapter]]]],
    list[tuple[keras.layers.Layer, str, Any]],
]
