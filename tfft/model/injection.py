"""Additions to the linear maps of a built model: what LoRA, adapters and IA3 are made of.

A `LinearTarget` is a linear map that can be named and changed by itself: a Dense or EinsumDense
layer, or one part of a fused product (query, key and value are one layer). An `Adapter` sees the
projection's input and output. The pretrained layers stay where they are, with their variables and
paths: additions are attached to them and can be detached again, merged, or exchanged for others.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.utils.errors import UserError


@dataclass(frozen=True)
class LinearTarget:
    """A linear map [..., inputs] -> [..., outputs] within a model.

    Attributes:
        name: path of the layer, or of the part of it: `block_0/attention/query`.
        layer: whose product it is.
        first: its first column among the layer's outputs.
    """

    name: str
    layer: keras.layers.Layer
    inputs: int
    outputs: int
    first: int = 0

    @property
    def columns(self) -> slice:
        """Its columns among the layer's outputs."""
        return slice(self.first, self.first + self.outputs)

    @property
    def whole(self) -> bool:
        """Whether it is all of its layer."""
        return self.outputs == _hook(self.layer).outputs

    @property
    def policy(self) -> keras.DTypePolicy:
        """In what precision its layer computes."""
        return self.layer.dtype_policy

    def kernel(self) -> Any:
        """The pretrained kernel, [inputs, outputs]."""
        return _hook(self.layer).kernel()[:, self.columns]

    def bias(self) -> Any:
        """The bias, [outputs], or 0 where there is none."""
        bias = self.layer.bias
        return 0.0 if bias is None else ops.reshape(bias, [-1])[self.columns]


class Adapter(keras.layers.Layer):
    """What is added to a projection; subclasses create their variables in `create`."""

    def create(self, projection: LinearTarget) -> None:
        """Create the variables for a projection."""
        raise NotImplementedError

    def before(self, x: Any, training: bool) -> Any:
        """The projection's input, [..., inputs], perhaps changed (whole layers only)."""
        return x

    def after(self, x: Any, y: Any, training: bool) -> Any:
        """The projection's output, [..., outputs], perhaps changed; no activation was applied."""
        return y

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Kernel and bias that give the same output alone; None where there are none such."""
        return None


def linear_targets(model: keras.Model) -> list[LinearTarget]:
    """Every linear map of a model, bottom to top, heads included; each layer once."""
    place = {variable.path: at for at, variable in enumerate(model.weights)}
    linear = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense) and layer.built
    ]
    linear.sort(key=lambda layer: place.get(layer.variables[0].path, len(place)))
    return [projection for layer in linear for projection in _of_layer(layer)]


def chosen(model: keras.Model, pattern: str, key: str) -> list[LinearTarget]:
    """The backbone's projections whose names a regular expression finds something in.

    Raises:
        UserError: naming the config's `key`: the expression is none, or finds nothing.
    """
    every = [p for p in linear_targets(model) if not p.name.startswith("head/")]
    try:
        found = [p for p in every if re.search(pattern, p.name)]
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is no regular expression: {error}") from None
    if not every:
        raise UserError(f"{key}: {pattern!r} finds nothing: the backbone has no dense layers")
    if not found:
        names = dict.fromkeys(re.sub(r"\d+", "0", p.name) for p in every)
        raise UserError(f"{key}: {pattern!r} finds nothing in {', '.join(names)}")
    return found


def attach(
    targets: Sequence[LinearTarget], make: Callable[[LinearTarget], Adapter]
) -> list[Adapter]:
    """Attach an addition to each projection; its variables are `<projection>/<its name>/...`.

    Returns the additions, in order. Those attached later see the output of those before.
    """
    made = []
    for target in targets:
        addition = make(target)
        with scoped(target.name):
            addition.create(target)
        addition.built = True
        hook = _hook(target.layer)
        hook.additions.append((target, addition))
        hook.track()
        made.append(addition)
    return made


def fit(layer: keras.layers.Layer, attribute: str, part: Any) -> None:
    """Set an attribute that a layer looks at (a prefix, a prompt), so that `detach` finds it."""
    fitted = layer.__dict__.setdefault("_tfft_fitted", {})
    fitted[attribute] = (getattr(layer, attribute), part)
    _set(layer, attribute, part)


def detach(model: keras.Model) -> "Record":
    """Take every addition and fitted part off; `reattach` puts them back."""
    hooked = []
    for hook in _hooks(model):
        hooked.append((hook, hook.additions))
        hook.additions = []
        hook.track()
    fitted = []
    for layer in model._flatten_layers(include_self=False):
        for attribute, (before, part) in layer.__dict__.pop("_tfft_fitted", {}).items():
            fitted.append((layer, attribute, part))
            _set(layer, attribute, before)
    return hooked, fitted


def reattach(record: "Record") -> None:
    """Put back what `detach` took off."""
    hooked, fitted = record
    for hook, additions in hooked:
        hook.additions = additions
        hook.track()
    for layer, attribute, part in fitted:
        fit(layer, attribute, part)


def _set(layer: keras.layers.Layer, attribute: str, value: Any) -> None:
    """Set an attribute; the layer owns it if it is a layer, and no longer owns what was there."""
    before = getattr(layer, attribute)
    if isinstance(before, keras.layers.Layer):
        layer._layers.remove(before)
    if isinstance(value, keras.layers.Layer):
        layer._layers.append(value)
    layer.__dict__[attribute] = value


@contextmanager
def merged(model: keras.Model) -> Iterator[list[str]]:
    """Within: additions that can be are part of the kernels, and are not attached.

    Gives the paths of the layers. Afterwards kernels, biases and additions are what they were, to
    the bit. Functions that were traced outside are wrong within, and the other way round.
    """
    kept = []
    for hook in _hooks(model):
        if hook.additions and (values := hook.merged_values()) is not None:
            kept.append((hook, hook.additions, hook.exchange(*values)))
            hook.additions = []
            hook.track()
    try:
        yield [hook.layer.path for hook, _, _ in kept]
    finally:
        for hook, additions, values in kept:
            hook.exchange(*values)
            hook.additions = additions
            hook.track()


def path(layer: keras.layers.Layer) -> str:
    """Of a layer's variables, without their own names."""
    return layer.variables[0].path.rsplit("/", 1)[0]


def replace_kernel(layer: keras.layers.Layer, make: Callable[[np.ndarray], Any]) -> None:
    """Let another layer, with `kernel()` and `product(x, training)`, be a layer's kernel.

    `make` is given the kernel [inputs, outputs]. The new variables are `<layer>/<its name>/...`;
    the kernel's own is gone.
    """
    hook = _hook(layer)
    with scoped(path(layer)):
        hook.replace_matmul(make(np.array(ops.convert_to_numpy(hook.kernel()), np.float32)))
    layer._untrack_variable(layer._kernel)
    layer._delete_tracking("_kernel")  # TensorFlow's own list, which would keep it in memory
    layer._kernel = None


def replace_matmul(
    layer: keras.layers.Layer, make: Callable[[Callable[[], Any], np.ndarray], Any]
) -> None:
    """As `replace_kernel`, the kernel staying: `make` is given what gives it, and its value."""
    hook = _hook(layer)
    with scoped(path(layer)):
        value = np.array(ops.convert_to_numpy(hook.kernel()), np.float32)
        hook.replace_matmul(make(hook.own_kernel, value))


class Hook:
    """Stands in for the `call` of a Dense or EinsumDense layer that has additions.

    The layer's own call computes the product and the bias; its activation is applied here, after
    the additions.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer = layer
        self.inputs, self.outputs = _widths(layer)
        self.additions: list[tuple[LinearTarget, Adapter]] = []
        self._other: Any = None  # has the product in place of the layer
        self._original = layer.call
        self.activation = layer.activation
        layer.activation = keras.activations.linear
        layer.call = self
        layer.__dict__["_tfft_hook"] = self  # `call` may be replaced once more (remat)
        self._tracked: list[Adapter] = []

    def __call__(self, inputs: Any, training: Any = None) -> Any:
        """As the layer's own call."""
        training = bool(training)
        if not self.additions:
            return self.activation(self._product(inputs, training))
        x = self._flat(inputs, self.inputs)
        for _, addition in self.additions:
            x = addition.before(x, training)
        y = self._product(self._shaped_like(x, inputs), training)
        shape = ops.shape(y)
        parts = self._cut(self._flat(y, self.outputs))
        for target, addition in self.additions:
            at = next(i for i, (first, _) in enumerate(parts) if first == target.first)
            parts[at] = (target.first, addition.after(x, parts[at][1], training))
        y = ops.concatenate([p for _, p in parts], -1) if len(parts) > 1 else parts[0][1]
        return self.activation(ops.reshape(y, shape))

    def replace_matmul(self, other: Any) -> None:
        """Use the product of `other` in place of the layer's."""
        self.layer._layers.append(other)
        self._other = other

    def _product(self, inputs: Any, training: bool) -> Any:
        """The layer's own call, without its activation."""
        if self._other is None:
            return self._original(inputs)
        y = self._other.product(self._flat(inputs, self.inputs), training)
        bias = self.layer.bias
        if bias is not None:
            y = y + ops.cast(ops.reshape(bias, [-1]), y.dtype)
        tail = [self.outputs] if bias is None else bias.shape
        return ops.reshape(y, [*ops.shape(y)[:-1], *tail])

    def kernel(self) -> Any:
        """The kernel as [inputs, outputs]."""
        return self.own_kernel() if self._other is None else self._other.kernel()

    def own_kernel(self) -> Any:
        """The layer's own."""
        return ops.reshape(self.layer.kernel, [self.inputs, self.outputs])

    def track(self) -> None:
        """Let the layer own the additions that are attached now, and those alone."""
        for addition in self._tracked:
            self.layer._layers.remove(addition)
        self._tracked = [addition for _, addition in self.additions]
        self.layer._layers.extend(self._tracked)

    def merged_values(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Kernel and bias with all additions merged; None if one of them cannot be."""
        if self.layer._kernel is None:
            return None
        kernel = np.array(ops.convert_to_numpy(self.kernel()), np.float32)
        own = self.layer.bias
        bias = np.zeros(self.outputs, np.float32)
        if own is not None:
            bias = np.array(ops.convert_to_numpy(own), np.float32).reshape(-1)
        for target, addition in self.additions:
            values = addition.merge(kernel[:, target.columns], bias[target.columns])
            if values is None:
                return None
            kernel[:, target.columns], bias[target.columns] = values
        if own is None and bias.any():
            return None
        return kernel, None if own is None else bias

    def exchange(
        self, kernel: np.ndarray, bias: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Set kernel and bias; returns what was there."""
        layer = self.layer
        before = (
            np.array(ops.convert_to_numpy(layer.kernel)),
            None if layer.bias is None else np.array(ops.convert_to_numpy(layer.bias)),
        )
        layer.kernel.assign(kernel.reshape(layer.kernel.shape))
        if bias is not None:
            layer.bias.assign(bias.reshape(layer.bias.shape))
        return before

    def _cut(self, y: Any) -> list[tuple[int, Any]]:
        """The output at the borders of the parts: (first column, values)."""
        firsts = sorted({0, *(p.first for p, _ in self.additions)})
        ends = {p.first + p.outputs for p, _ in self.additions}
        borders = sorted({*firsts, *ends} - {self.outputs})
        values = ops.split(y, borders[1:], axis=-1) if len(borders) > 1 else [y]
        return list(zip(borders, values, strict=True))

    def _flat(self, x: Any, width: int) -> Any:
        return x if x.shape[-1] == width else ops.reshape(x, [*ops.shape(x)[:2], width])

    def _shaped_like(self, x: Any, inputs: Any) -> Any:
        return x if x.shape[-1] == inputs.shape[-1] else ops.reshape(x, ops.shape(inputs))


def _of_layer(layer: keras.layers.Layer) -> list[LinearTarget]:
    where = path(layer)
    try:
        inputs, outputs = _widths(layer)
    except ValueError:
        return []
    parts = getattr(layer, "parts", None)
    if not parts:
        return [LinearTarget(where, layer, inputs, outputs)]
    base, width = where.rsplit("/", 1)[0], outputs // len(parts)
    return [
        LinearTarget(f"{base}/{part}", layer, inputs, width, i * width)
        for i, part in enumerate(parts)
    ]


def _widths(layer: keras.layers.Layer) -> tuple[int, int]:
    """Inputs and outputs of the kernel as a matrix.

    Raises:
        ValueError: an EinsumDense that is no linear map of the last axes.
    """
    hook = layer.__dict__.get("_tfft_hook")
    if hook is not None:
        return hook.inputs, hook.outputs
    shape = tuple(layer.kernel.shape)
    if isinstance(layer, keras.layers.Dense):
        return shape[0], shape[1]
    given, rest = layer.equation.replace(" ", "").split(",")
    kernel, made = rest.split("->")
    summed = [c for c in kernel if c not in made]
    out = kernel[len(summed) :]
    if not (kernel.startswith("".join(summed)) and given.endswith("".join(summed))):
        raise ValueError(f"not a linear map of the last axes: {layer.equation}")
    if not made.endswith(out):
        raise ValueError(f"not a linear map of the last axes: {layer.equation}")
    return int(np.prod(shape[: len(summed)])), int(np.prod(shape[len(summed) :]))


def _hook(layer: keras.layers.Layer) -> Hook:
    return layer.__dict__.get("_tfft_hook") or Hook(layer)


def _hooks(model: keras.Model) -> list[Hook]:
    layers = model._flatten_layers(include_self=False)
    return [h for layer in layers if (h := layer.__dict__.get("_tfft_hook")) is not None]


@contextmanager
def scoped(where: str) -> Iterator[None]:
    """Variables created within have paths below `where`."""
    with ExitStack() as stack:
        for part in where.split("/"):
            stack.enter_context(keras.name_scope(part))
        yield


Record = tuple[
    list[tuple[Hook, list[tuple[LinearTarget, Adapter]]]],
    list[tuple[keras.layers.Layer, str, Any]],
]
