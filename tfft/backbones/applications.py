"""Backbones from keras.applications: every family, with stages by its block structure.

The models are flat, not nested, so that a mask, a stage or a split can separate any two of their
blocks. The input scaling and channel order of each family are part of the graph.
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
from tfft.utils import console, keras_internals
from tfft.utils.errors import UserError, nearest
from tfft.utils.pretrained import WEIGHTS_LIMIT
from tfft.utils.reading import expanded, regular_file


@dataclass(frozen=True)
class Family:
    """Scaling and block structure of a model family.

    Attributes:
        scaling: a key of `pixels.SCALINGS`; `none` if the model scales its input.
        blocks: regular expression whose groups capture the block in a layer's name, see
            `blocks.block_keys`.
        ends: alternative to `blocks`: regular expression of the names of the last layers of blocks.
            A layer belongs to the first end that depends on it.
        stem: with `ends`, regular expression of the stem's last layer: the last match before the
            first end.
        normalized: whether the authors normalise the averaged vector. Keras does so only with
            `pooling="avg"`; without it, Keras normalises the map instead.
    """

    scaling: str
    blocks: str = ""
    ends: str = ""
    stem: str = ""
    normalized: bool = False


_NUMBERED = r"^(block\d+[a-z]?)_"
FAMILIES: Mapping[str, Family] = {
    "ConvNeXt": Family("none", r"_(stage_\d+_block_\d+)_", normalized=True),
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

# Image side in pixels that the published weights were trained on, if it is not 224.
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
    """Layer with a trainable factor per channel.

    Touvron et al. 2021, "Going deeper with Image Transformers".

    Args:
        value: initial value of all factors.
        width: number of channels.
    """

    def __init__(self, value: float, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._value, self._width = value, width
        self.gamma = self.add_weight(
            shape=(width,), initializer=keras.initializers.Constant(value), name="gamma"
        )

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "value": self._value, "width": self._width}

    def call(self, x):
        """Scale channels, [..., C] -> [..., C]."""
        return x * self.gamma


class Standardize(keras.layers.Layer):
    """Layer that computes (x - mean) / deviation per channel, with values from the weights file.

    It replaces Keras' Normalization, which ignores newly loaded variables until `finalize_state()`.
    """

    def build(self, shape):
        """Create mean and variance, never trained."""
        width = (shape[-1],)
        self.mean = self.add_weight(width, "zeros", trainable=False, name="mean")
        self.variance = self.add_weight(width, "ones", trainable=False, name="variance")

    def call(self, x):
        """Standardize channels, [..., C] -> [..., C]."""
        # As in Keras' Normalization: a constant channel is not divided by 0.
        deviation = ops.maximum(ops.sqrt(self.variance), keras.config.epsilon())
        return (x - ops.cast(self.mean, x.dtype)) / ops.cast(deviation, x.dtype)


def names() -> list[str]:
    """Return the names of all supported models, as in keras.applications."""
    # Builders have capital letters, modules do not.
    return sorted(n for n in dir(keras.applications) if n[0].isupper() and _family(n) is not None)


def load(config: ModelConfig, precision: str) -> Backbone:
    """Load a model of keras.applications.

    Args:
        config: the `model` section; its `weights` are `imagenet` (the default), `none` (random) or
            a .weights.h5 file.
        precision: a Keras dtype policy.

    Raises:
        UserError: There is no such model, or its weights cannot be loaded.
    """
    name = config.backbone.partition(":")[2]
    weights = config.weights or "imagenet"
    path = expanded(weights)
    if weights not in ("imagenet", "none"):
        if not path.exists():
            raise UserError(f"model.weights: no such file: {weights} (or imagenet, or none)")
        if path.suffix not in (".h5", ".keras"):
            raise UserError(f"model.weights: must be a .weights.h5 file. Received: {weights}")
        weights = str(regular_file(path, WEIGHTS_LIMIT))
    size = config.image_size or SIZES.get(name, 224)
    description = {"provider": "keras", "name": name, "size": size}
    backbone = _build(description, precision, None if weights == "none" else weights)
    return replace(backbone, fingerprint=_fingerprint(backbone))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """Build the architecture from its description, with random weights."""
    return _build(description, precision, None)


def _family(name: str) -> Family | None:
    # ResNet50V2 and its like carry the version after the depth.
    kind = "ResNetV2" if re.fullmatch(r"ResNet\d+V2", name) else name
    # Try long names first: MobileNet is a prefix of MobileNetV2.
    matches = [f for f in sorted(FAMILIES, key=len, reverse=True) if kind.startswith(f)]
    return FAMILIES[matches[0]] if matches else None


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
        inner = _build_inner(name, x, weights, "avg" if family.normalized else None)
        groups = _groups(inner, family)
        if renamed := _new_names(groups):
            inner, groups = _renamed(inner, groups, renamed)
        model = _encoder(inner, family)
    return Backbone(
        model=model,
        stages=tuple(_stage(inner, n, layers) for n, layers in groups.items() if layers),
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=ImageSpec((size, size)),
    )


def _encoder(inner: keras.Model, family: Family) -> keras.Model:
    image, output = inner.inputs[0], inner.outputs[0]
    if not family.normalized:
        return pixels.encoder(image, output)
    averages = [x for x in inner.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
    outputs = {"pooled": output, "map": averages[-1].input}
    return keras.Model({"image": image}, outputs, name="encoder")


# Exceptions that Keras raises for an unsupported image size.
_SIZE_ERRORS = (ValueError, OSError, KeyError, RuntimeError, TypeError)


def _build_inner(
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
        # Keras raises a plain Exception for a failed download, and any class for a broken file.
        if weights is None and not isinstance(error, _SIZE_ERRORS):
            raise
        reason = " ".join(str(error).split())[:200]
        if weights is None:
            raise UserError(
                f"model.image_size: {x.shape[1]} does not fit {name}: {reason}"
            ) from None
        if weights == "imagenet":
            raise UserError(
                f"model.weights: the ImageNet weights of {name} cannot be downloaded: {reason}; "
                "set a file, or `none` for random weights"
            ) from None
        raise UserError(f"model.weights: {weights} does not fit {name}: {reason}") from None


def _load(model: keras.Model, path: str) -> None:
    """Load weights from a file that must hold all of them.

    Keras only warns of missing weights. NaN marks those that the file did not overwrite.

    Raises:
        ValueError: A variable is missing in the file.
    """
    # Only floats can hold NaN.
    floats = [v for v in model.weights if keras.backend.is_float_dtype(v.dtype)]
    for variable in floats:
        variable.assign(np.full(variable.shape, np.nan, np.float32))
    with warnings.catch_warnings():
        # Keras only warns of what the file lacks; the check below raises instead.
        warnings.simplefilter("ignore")
        model.load_weights(path)
    for variable in floats:
        if np.isnan(keras.ops.convert_to_numpy(variable)).any():
            raise ValueError(f"it lacks {variable.path}")


def _groups(model: keras.Model, family: Family) -> dict[str, list[str]]:
    """Return the names of the layers with weights for each stage, bottom to top."""
    layers = [layer.name for layer in model.layers if layer.weights]
    by_block = (
        _blocks_by_ends(model, family) if family.ends else blocks.block_keys(layers, family.blocks)
    )
    keys = list(dict.fromkeys(key for key in by_block.values() if key not in ("stem", "top")))
    stage_names = {
        "stem": "stem",
        "top": "top",
        **{key: f"block_{i}" for i, key in enumerate(keys)},
    }
    groups: dict[str, list[str]] = {stage_names[key]: [] for key in ("stem", *keys, "top")}
    for layer in layers:
        groups[stage_names[by_block[layer]]].append(layer)
    return {name: members for name, members in groups.items() if members}


def _blocks_by_ends(model: keras.Model, family: Family) -> dict[str, str]:
    """Return the block of each layer: the first end that depends on it, or `stem` or `top`."""
    # `model.layers` is in topological order, bottom to top.
    order = [layer for layer in model.layers if keras_internals.inbound_nodes(layer)]
    ends = [layer for layer in order if re.fullmatch(family.ends, layer.name)]
    below = order[: order.index(ends[0])]
    stem = [layer for layer in below if re.fullmatch(family.stem, layer.name)][-1]
    keys: dict[str, str] = {}
    for end in (stem, *ends):
        key = "stem" if end is stem else end.name
        pending = [end]
        # Walk down from the end; layers that belong to an earlier end stop the walk.
        while pending:
            layer = pending.pop()
            if layer.name not in keys:
                keys[layer.name] = key
                pending += [
                    keras_internals.producer(tensor)
                    for tensor in keras_internals.inbound_nodes(layer)[0].input_tensors
                ]
    return {layer.name: keys.get(layer.name, "top") for layer in order}


def _new_names(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return new names for layers that Keras named automatically.

    Keras numbers them over the whole process, but a variable's path must be the same in every one.
    """
    automatic = re.compile(r"((?:layer_|batch_)?normalization|(?:separable_)?conv2d)(_\d+)?")
    new_names = {}
    for stage, layers in groups.items():
        for position, layer in enumerate(layers):
            if (match := automatic.fullmatch(layer)) is not None:
                new_names[layer] = f"{stage}_{match[1]}_{position}"
    return new_names


def _renamed(
    model: keras.Model, groups: dict[str, list[str]], new_names: Mapping[str, str]
) -> tuple[keras.Model, dict[str, list[str]]]:
    """Return a copy of the model with some layers renamed, and the groups with the new names."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        name = new_names.get(layer.name, layer.name)
        if type(layer).__name__ == "LayerScale":  # its variable is numbered per process too
            return LayerScale(float(layer.init_values), layer.projection_dim, name=name)
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            return Standardize(name=name)
        return layer.__class__.from_config({**layer.get_config(), "name": name})

    renamed = keras.models.clone_model(model, clone_function=clone)
    for old, new in zip(model.layers, renamed.layers, strict=True):
        # Not strict: Keras' Normalization also has a count, which `Standardize` lacks.
        for source, target in zip(old.weights, new.weights, strict=False):
            target.assign(source)
    return renamed, {
        stage: [new_names.get(layer, layer) for layer in layers] for stage, layers in groups.items()
    }


def _stage(model: keras.Model, name: str, layers: Sequence[str]) -> Stage:
    """Return the stage of some layers.

    Its pattern holds the first parts of the variables' paths, which for a nested model are not the
    layer's name.
    """
    prefixes = {v.path.partition("/")[0]: None for n in layers for v in model.get_layer(n).weights}
    return Stage(name, f"(?:{'|'.join(map(re.escape, prefixes))})/")


def _fingerprint(backbone: Backbone) -> str:
    # The description does not name the weights, so their values are hashed too.
    digest = hashlib.sha256(json.dumps(dict(backbone.description), sort_keys=True).encode())
    for variable in backbone.model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).data)
    return digest.hexdigest()[:16]
