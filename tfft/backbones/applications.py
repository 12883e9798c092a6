"""keras.applications: every family, with stages by its block structure.

The models are built flat, so that a mask, a cut and a stage may lie between any two of their
blocks. What each was trained to see (scaling, channel order) stands in the graph.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.backbones import blocks, pixels
from tfft.config import ModelConfig
from tfft.spec import Backbone, HeadStyle, ImageSpec, Stage
from tfft.utils import console
from tfft.utils.errors import UserError, nearest
from tfft.utils.pretrained import WEIGHTS_LIMIT
from tfft.utils.reading import expanded, regular_file


@dataclass(frozen=True)
class Family:
    """What tfft must know of a family beyond its builder.

    Attributes:
        scaling: of `pixels.SCALINGS`; `none` where the model scales itself.
        blocks: finds the block in a layer's name, as its groups. Layers without one belong to the
            stem, to the top, or, between two blocks, to the next one.
        ends: instead, names the layers that blocks end with: what leads to an end and to none
            before it belongs to its block.
        stem: with `ends`, the layer at which the stem ends; the last such one before the first end.
        normed: whether its authors normalise the averaged vector; Keras then does the same to an
            averaged vector, and without one normalises the map instead.
    """

    scaling: str
    blocks: str = ""
    ends: str = ""
    stem: str = ""
    normed: bool = False


_NUMBERED = r"^(block\d+[a-z]?)_"
FAMILIES: Mapping[str, Family] = {
    "ConvNeXt": Family("none", r"_(stage_\d+_block_\d+)_", normed=True),
    "DenseNet": Family("torch", r"^(?:conv([2-5])_block|pool([2-4])_)"),
    "EfficientNetV2": Family("none", _NUMBERED),
    "EfficientNet": Family("none", _NUMBERED),
    "InceptionResNetV2": Family(
        "tf", ends=r"mixed_[567]|mixed_\d[a-z]|block\d+_\d+_mixed", stem=r"max_pooling2d.*"
    ),
    "InceptionV3": Family("tf", ends=r"mixed\d+", stem=r"max_pooling2d.*"),
    "MobileNetV3": Family("none", r"^(expanded_conv(?:_\d+)?)_(?!\d)"),
    "MobileNetV2": Family("tf", r"^(expanded_conv|block_\d+)_"),
    "MobileNet": Family("tf", r"^conv_[dp]w_(\d+)"),
    "NASNet": Family("tf", ends=r"(?:normal|reduction)_concat_.*", stem="stem_bn1"),
    "ResNetV2": Family("tf", r"^(conv\d_block\d+)_"),
    "ResNet": Family("caffe", r"^(conv\d_block\d+)_"),
    "VGG": Family("caffe", r"^(block\d)_"),
    "Xception": Family("tf", ends=r"add(?:_\d+)?|block14_sepconv2_act", stem="block1_conv2_act"),
}

# Pixels that the published weights were trained on, where that is not 224.
SIZES: Mapping[str, int] = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}


class LayerScale(keras.layers.Layer):
    """A factor for each channel (Touvron et al. 2021, "Going deeper with Image Transformers").

    Args:
        value: of all factors at first.
        width: channels.
    """

    def __init__(self, value: float, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._value, self._width = value, width
        self.gamma = self.add_weight(
            shape=(width,), initializer=keras.initializers.Constant(value), name="gamma"
        )

    def get_config(self):
        """Its arguments."""
        return {**super().get_config(), "value": self._value, "width": self._width}

    def call(self, x):
        """[..., C] -> the same shape."""
        return x * self.gamma


class Standardize(keras.layers.Layer):
    """(x - mean) / deviation for each channel, by what the weights' file holds.

    Keras' own Normalization takes new values only when it is told to look at its variables again.
    """

    def build(self, shape):
        """Create the two variables, which never move."""
        width = (shape[-1],)
        self.mean = self.add_weight(width, "zeros", trainable=False, name="mean")
        self.variance = self.add_weight(width, "ones", trainable=False, name="variance")

    def call(self, x):
        """[..., C] -> the same shape."""
        deviation = ops.maximum(ops.sqrt(self.variance), keras.config.epsilon())
        return (x - ops.cast(self.mean, x.dtype)) / ops.cast(deviation, x.dtype)


def names() -> list[str]:
    """The models there are, as keras.applications calls them."""
    return sorted(n for n in dir(keras.applications) if n[0].isupper() and _family(n) is not None)


def load(config: ModelConfig, precision: str) -> Backbone:
    """A model of keras.applications with its weights: ImageNet's, a file's, or random ones.

    Raises:
        UserError: no such model, or its weights cannot be had.
    """
    name = config.backbone.partition(":")[2]
    weights = config.weights or "imagenet"
    given = expanded(weights)
    if weights not in ("imagenet", "none"):
        if not given.exists():
            raise UserError(f"model.weights: no such file: {weights} (or imagenet, or none)")
        if given.suffix not in (".h5", ".keras"):
            raise UserError(f"model.weights: must be a .weights.h5 file. Received: {weights}")
        weights = str(regular_file(given, WEIGHTS_LIMIT))
    size = config.image_size or SIZES.get(name, 224)
    description = {"provider": "keras", "name": name, "size": size}
    backbone = _build(description, precision, None if weights == "none" else weights)
    return replace(backbone, fingerprint=_fingerprint(backbone))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The architecture alone, from what `load` described."""
    return _build(description, precision, None)


def _family(name: str) -> Family | None:
    kind = "ResNetV2" if re.fullmatch(r"ResNet\d+V2", name) else name
    # The longest name first: MobileNet begins MobileNetV2 too.
    found = [f for f in sorted(FAMILIES, key=len, reverse=True) if kind.startswith(f)]
    return FAMILIES[found[0]] if found else None


def _build(description: Mapping[str, Any], precision: str, weights: str | None) -> Backbone:
    name, size = description["name"], int(description["size"])
    family = _family(name)
    if family is None or name not in dir(keras.applications):
        raise UserError(
            f"model.backbone: keras.applications has no {name!r}{nearest(name, names())}"
        )
    with pixels.policy(precision):
        image = keras.Input([size, size, 3], dtype="float32", name="image")
        scaling = pixels.SCALINGS[family.scaling]
        x = pixels.Pixels(**scaling, name="pixels")(image) if scaling else image
        inner = _built(name, x, weights, "avg" if family.normed else None)
        groups = _groups(inner, family)
        if renamed := _new_names(groups):
            inner, groups = _renamed(inner, groups, renamed)
        model = _encoder(inner, family)
    width = int(inner.outputs[0].shape[-1])
    return Backbone(
        model=model,
        stages=tuple(_stage(inner, n, layers) for n, layers in groups.items() if layers),
        features={"pooled": width, "map": width},
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=ImageSpec((size, size)),
    )


def _encoder(inner: keras.Model, family: Family) -> keras.Model:
    image, found = inner.inputs[0], inner.outputs[0]
    if not family.normed:
        return pixels.encoder(image, found)
    averages = [x for x in inner.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
    outputs = {"pooled": found, "map": averages[-1].input}
    return keras.Model({"image": image}, outputs, name="encoder")


# What Keras raises for a size that does not go.
_MISTAKES = (ValueError, OSError, KeyError, RuntimeError, TypeError)


def _built(
    name: str, x: keras.KerasTensor, weights: str | None, pooling: str | None
) -> keras.Model:
    if weights == "imagenet":
        console.log(f"model: ImageNet weights of {name} by keras.applications")
    from_file = weights not in (None, "imagenet")
    try:
        model = getattr(keras.applications, name)(
            weights=None if from_file else weights,
            include_top=False,
            input_tensor=x,
            pooling=pooling,
        )
        if from_file:
            _load(model, str(weights))
        return model
    except Exception as error:
        # Where a download fails Keras raises the base class itself, and for a broken file anything.
        if weights is None and not isinstance(error, _MISTAKES):
            raise
        reason = " ".join(str(error).split())[:200]
        if weights is None:
            raise UserError(f"model.image_size: {x.shape[1]} does not go: {reason}") from None
        if weights == "imagenet":
            raise UserError(
                f"model.weights: the ImageNet weights of {name} cannot be had: {reason}; give a "
                "file, or `none` to begin at random"
            ) from None
        raise UserError(f"model.weights: {weights} does not fit {name}: {reason}") from None


def _load(model: keras.Model, path: str) -> None:
    """Take the weights of a file; Keras only warns of what it does not find there.

    Raises:
        ValueError: the file is of another model.
    """
    floats = [v for v in model.weights if keras.backend.is_float_dtype(v.dtype)]
    for variable in floats:
        variable.assign(np.full(variable.shape, np.nan, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_weights(path)
    for variable in floats:
        if np.isnan(keras.ops.convert_to_numpy(variable)).any():
            raise ValueError(f"it holds nothing for {variable.path}")


def _groups(model: keras.Model, family: Family) -> dict[str, list[str]]:
    """Names of the layers with weights, by stage, bottom to top."""
    layers = [layer.name for layer in model.layers if layer.weights]
    by_block = _ended(model, family) if family.ends else blocks.numbered(layers, family.blocks)
    keys = list(dict.fromkeys(key for key in by_block.values() if key not in ("stem", "top")))
    names_ = {"stem": "stem", "top": "top", **{key: f"block_{i}" for i, key in enumerate(keys)}}
    groups: dict[str, list[str]] = {names_[key]: [] for key in ("stem", *keys, "top")}
    for layer in layers:
        groups[names_[by_block[layer]]].append(layer)
    return {name: found for name, found in groups.items() if found}


def _ended(model: keras.Model, family: Family) -> dict[str, str]:
    """The block of each layer, by the first end that it leads to."""
    order = [layer for layer in model.layers if layer._inbound_nodes]
    ends = [layer for layer in order if re.fullmatch(family.ends, layer.name)]
    below = order[: order.index(ends[0])]
    stem = [layer for layer in below if re.fullmatch(family.stem, layer.name)][-1]
    found: dict[str, str] = {}
    for end in (stem, *ends):
        key = "stem" if end is stem else end.name
        wanted = [end]
        while wanted:
            layer = wanted.pop()
            if layer.name not in found:
                found[layer.name] = key
                wanted += [
                    tensor._keras_history.operation
                    for tensor in layer._inbound_nodes[0].input_tensors
                ]
    return {layer.name: found.get(layer.name, "top") for layer in order}


def _new_names(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """New names for layers that Keras named by a count over the whole process: a variable's path
    must be the same in every process."""
    automatic = re.compile(r"((?:layer_|batch_)?normalization|(?:separable_)?conv2d)(_\d+)?")
    found = {}
    for stage, layers in groups.items():
        for at, layer in enumerate(layers):
            if (match := automatic.fullmatch(layer)) is not None:
                found[layer] = f"{stage}_{match[1]}_{at}"
    return found


def _renamed(
    model: keras.Model, groups: dict[str, list[str]], names_: Mapping[str, str]
) -> tuple[keras.Model, dict[str, list[str]]]:
    """The same model, some of its layers under other names."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        name = names_.get(layer.name, layer.name)
        if type(layer).__name__ == "LayerScale":  # its variable has a counted name too
            return LayerScale(float(layer.init_values), layer.projection_dim, name=name)
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            return Standardize(name=name)
        return layer.__class__.from_config({**layer.get_config(), "name": name})

    made = keras.models.clone_model(model, clone_function=clone)
    for old, new in zip(model.layers, made.layers, strict=True):
        # Keras' Normalization keeps a count beside mean and variance.
        for source, target in zip(old.weights, new.weights, strict=False):
            target.assign(source)
    return made, {
        stage: [names_.get(layer, layer) for layer in layers] for stage, layers in groups.items()
    }


def _stage(model: keras.Model, name: str, layers: Sequence[str]) -> Stage:
    """A stage of layers, by the first parts of its variables' paths (a nested model's own layers
    have others)."""
    heads = {v.path.partition("/")[0]: None for n in layers for v in model.get_layer(n).weights}
    return Stage(name, f"(?:{'|'.join(map(re.escape, heads))})/")


def _fingerprint(backbone: Backbone) -> str:
    digest = hashlib.sha256(json.dumps(dict(backbone.description), sort_keys=True).encode())
    for variable in backbone.model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).data)
    return digest.hexdigest()[:16]
