"""timm checkpoints (Wightman 2019, "PyTorch Image Models"), through KerasHub's converters.

KerasHub knows ResNet, ResNetV2, DenseNet, EfficientNet, MobileNetV3, VGG, CSPNet and DarkNet; its
DenseNet pads as TensorFlow does where timm's pads as PyTorch does, which is put right here.
"""

import contextlib
import io
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from tfft.backbones import kerashub_images, pixels
from tfft.backbones.families import processor, weight_map
from tfft.backbones.families.family import bounded
from tfft.backbones.kerashub_images import Padded
from tfft.backbones.tensors import Tensors, weight_files
from tfft.config import ModelConfig
from tfft.spec import Backbone, ImageSpec, StoredHead
from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors

# Where the classifier's tensors are, by the architecture, where it is one linear map of the pooled
# features.
_HEADS = {
    "resnetv2": ("head.fc", "conv"),
    "resnet": ("fc", "transpose"),
    "densenet": ("classifier", "transpose"),
    "efficientnet": ("classifier", "transpose"),
    "csp": ("head.fc", "transpose"),
    "darknet": ("head.fc", "transpose"),
}
_WRONG = r"efficientnet_e[slm]"  # features of keras-hub 0.32 are up to 75 off
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def load(config: ModelConfig, precision: str) -> Backbone:
    """A checkpoint's network with its weights.

    Raises:
        UserError: it cannot be had, or is of a kind that has no converter.
    """
    import keras_hub

    folder = pretrained.folder(config.backbone.partition(":")[2], config.revision)
    settings = pretrained.read_json(folder / "config.json")
    files = weight_files(folder)  # before KerasHub looks, which takes a pickle's name too
    architecture = settings.get("architecture")
    # With these KerasHub would take it for a checkpoint of another kind.
    if not isinstance(architecture, str) or {"registered_name", "model_type"} & settings.keys():
        raise UserError(f"{folder / 'config.json'}: names no timm architecture; hf: loads others")
    if re.match(_WRONG, architecture):
        raise UserError(
            f"model.backbone: {architecture} is not supported: KerasHub's converter makes another "
            "network of it"
        )
    message = f"model.backbone: {architecture} cannot be loaded through KerasHub"
    with (
        library_errors(message),
        contextlib.redirect_stdout(io.StringIO()),  # it prints every tensor's name
    ):
        inner = keras_hub.models.Backbone.from_preset(str(folder), dtype=precision)
    image_spec, scaling = _seen(settings, folder)
    if config.image_size is not None:
        image_spec = replace(image_spec, size=(config.image_size, config.image_size))
    description = {
        "provider": "timm",
        "class": type(inner).__name__,
        "config": {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")},
        "image_spec": asdict(image_spec),
        "scaling": scaling,
    }
    backbone = _wrap(inner, description)
    with Tensors(files, ("",)) as tensors:
        width, head = backbone.features["pooled"], None
        if config.head == "checkpoint":
            head = _head(settings, architecture, tensors, width)
        return replace(backbone, fingerprint=tensors.fingerprint(settings), head=head)


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The architecture alone, from what `load` described."""
    import keras_hub

    cls = getattr(keras_hub.models, description["class"])
    return _wrap(cls.from_config({**description["config"], "dtype": precision}), description)


def _wrap(inner: keras.Model, description: Mapping[str, Any]) -> Backbone:
    given = description["image_spec"]
    image_spec = ImageSpec(**{**given, "size": tuple(given["size"])})
    change = _as_pytorch if "DenseNet" in description["class"] else (lambda layer: layer)
    return kerashub_images.wrap(inner, image_spec, description["scaling"], description, change)


def _as_pytorch(layer: keras.layers.Layer) -> keras.layers.Layer:
    """DenseNet's first two strides, with as much border on each side."""
    if layer.name == "conv1_conv":
        layer.padding = "valid"
        return Padded(layer, 3, 0.0, name="conv1_padded")
    if layer.name == "pool1":
        layer.padding = "valid"
        return Padded(layer, 1, 0.0, name="pool1_padded")  # after a ReLU nothing is below 0
    return layer


def _seen(settings: Mapping[str, Any], folder: Path) -> tuple[ImageSpec, dict[str, Any]]:
    """How its authors showed it pictures."""
    # In files from before 2023 it stands at the top.
    given = settings.get("pretrained_cfg") or settings
    where = f"{folder / 'config.json'}: pretrained_cfg"
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must be an object. Received: {given!r:.60}")
    shape = given.get("input_size", (3, 224, 224))
    if not isinstance(shape, list | tuple) or len(shape) != 3 or shape[0] != 3:
        raise UserError(f"{where}: input_size must be [3, height, width]. Received: {shape!r:.60}")
    height, width = (processor.pixels(n, f"{where}: input_size") for n in shape[1:])
    crop_fraction = bounded(given.get("crop_pct") or 0.875, f"{where}: crop_pct", (0.01, 1))
    mean = list(processor.three(given.get("mean", pixels.IMAGENET_MEAN), f"{where}: mean"))
    deviation = given.get("std", pixels.IMAGENET_DEVIATION)
    deviation = list(processor.three(deviation, f"{where}: std", least=1e-6))
    interpolation = given.get("interpolation", "bicubic")
    if interpolation not in _INTERPOLATIONS:
        interpolation = "bicubic"  # the nearest to lanczos
    mode = str(given.get("crop_mode", "center"))
    kind = {"squash": "stretch", "border": "pad"}.get(mode, "crop")
    image_spec = ImageSpec(
        (height, width), kind, interpolation, 1.0 if kind == "pad" else crop_fraction
    )
    return image_spec, {"scale": 1 / 255, "mean": mean, "deviation": deviation}


def _head(
    settings: Mapping[str, Any], architecture: str, tensors: Tensors, width: int
) -> StoredHead:
    family = next((f for f in _HEADS if architecture.startswith(f)), None)
    where, form = _HEADS.get(family or "", ("", ""))
    kernel, bias = (
        weight_map.Entry((f"{where}.weight",), form),
        weight_map.Entry((f"{where}.bias",)),
    )
    if family is None or not tensors.has(kernel) or not tensors.has(bias):
        raise UserError(
            f"model.head: checkpoint: {architecture} keeps no classifier that is one linear map; "
            "use head: new"
        )
    classes = math.prod(tensors.shape(bias.tensors[0]))
    shape = (1, 1, width, classes) if form == "conv" else (width, classes)
    weights = tensors.get(kernel, shape).reshape(width, classes)
    given = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    if not isinstance(given, list) or len(given) != classes:
        given = [f"LABEL_{i}" for i in range(classes)]
    labels = tuple(re.sub(r"\s+", " ", str(name)) for name in given)
    return StoredHead(
        labels, {"head/logits/kernel": weights, "head/logits/bias": tensors.get(bias, (classes,))}
    )
