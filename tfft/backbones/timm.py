"""timm checkpoints (Wightman 2019, "PyTorch Image Models"), through KerasHub's converters.

KerasHub knows ResNet, ResNetV2, DenseNet, EfficientNet, MobileNetV3, VGG, CSPNet and DarkNet; its
DenseNet pads as TensorFlow does where timm's pads as PyTorch does, which is put right here.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
from safetensors import SafetensorError

from tfft import pretrained
from tfft.backbones import kerashub_pictures
from tfft.backbones.families import names
from tfft.backbones.kerashub_pictures import Padded
from tfft.backbones.tensors import Tensors, weight_files
from tfft.config import ModelConfig
from tfft.errors import UserError
from tfft.spec import Backbone, Picture, StoredHead

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
_MISTAKES = (ValueError, KeyError, OSError, RuntimeError, TypeError, SafetensorError)


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
    if not isinstance(architecture, str):
        raise UserError(f"{folder / 'config.json'}: names no timm architecture; hf: loads others")
    if re.match(_WRONG, architecture):
        raise UserError(
            f"model.backbone: {architecture} is not supported: KerasHub's converter makes another "
            "network of it"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every tensor's name
            inner = keras_hub.models.Backbone.from_preset(str(folder), dtype=precision)
    except _MISTAKES as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.backbone: {architecture} cannot be loaded through KerasHub: {reason}"
        ) from None
    picture, scaling = _seen(settings, folder)
    if config.image_size is not None:
        picture = replace(picture, size=(config.image_size, config.image_size))
    description = {
        "provider": "timm",
        "class": type(inner).__name__,
        "config": {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")},
        "picture": asdict(picture),
        "scaling": scaling,
    }
    backbone = _wrap(inner, description)
    with Tensors(files, ("",)) as tensors:
        head = _head(settings, architecture, tensors) if config.head == "checkpoint" else None
        return replace(backbone, fingerprint=tensors.fingerprint(settings), head=head)


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The architecture alone, from what `load` described."""
    import keras_hub

    cls = getattr(keras_hub.models, description["class"])
    return _wrap(cls.from_config({**description["config"], "dtype": precision}), description)


def _wrap(inner: keras.Model, description: Mapping[str, Any]) -> Backbone:
    given = description["picture"]
    picture = Picture(**{**given, "size": tuple(given["size"])})
    change = _as_pytorch if "DenseNet" in description["class"] else (lambda layer: layer)
    return kerashub_pictures.wrap(inner, picture, description["scaling"], description, change)


def _as_pytorch(layer: keras.layers.Layer) -> keras.layers.Layer:
    """DenseNet's first two strides, with as much border on each side."""
    if layer.name == "conv1_conv":
        layer.padding = "valid"
        return Padded(layer, 3, 0.0, name="conv1_padded")
    if layer.name == "pool1":
        layer.padding = "valid"
        return Padded(layer, 1, 0.0, name="pool1_padded")  # after a ReLU nothing is below 0
    return layer


def _seen(settings: Mapping[str, Any], folder: Path) -> tuple[Picture, dict[str, Any]]:
    """How its authors showed it pictures."""
    # In files from before 2023 it stands at the top.
    given = settings.get("pretrained_cfg") or settings
    try:
        channels, height, width = (int(n) for n in given.get("input_size", (3, 224, 224)))
        keep = float(given.get("crop_pct") or 0.875)
        mean = [float(v) for v in given.get("mean", (0.485, 0.456, 0.406))]
        deviation = [float(v) for v in given.get("std", (0.229, 0.224, 0.225))]
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: pretrained_cfg: {error}") from None
    if channels != 3 or len(mean) != 3 or len(deviation) != 3:
        raise UserError(f"{folder / 'config.json'}: pretrained_cfg: three channels are needed")
    interpolation = given.get("interpolation", "bicubic")
    if interpolation not in _INTERPOLATIONS:
        interpolation = "bicubic"  # the nearest to lanczos
    kind = {"squash": "stretch", "border": "pad"}.get(given.get("crop_mode", "center"), "crop")
    picture = Picture((height, width), kind, interpolation, 1.0 if kind == "pad" else keep)
    return picture, {"scale": 1 / 255, "mean": mean, "deviation": deviation}


def _head(settings: Mapping[str, Any], architecture: str, tensors: Tensors) -> StoredHead:
    family = next((f for f in _HEADS if architecture.startswith(f)), None)
    where, form = _HEADS.get(family or "", ("", ""))
    kernel, bias = names.Entry((f"{where}.weight",), form), names.Entry((f"{where}.bias",))
    if family is None or not tensors.has(kernel) or not tensors.has(bias):
        raise UserError(
            f"model.head: checkpoint: {architecture} keeps no classifier that is one linear map; "
            "use head: new"
        )
    weights = tensors.get(kernel)
    weights = weights.reshape(-1, weights.shape[-1])  # of a convolution of one place
    classes = weights.shape[1]
    given = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    if not isinstance(given, list) or len(given) != classes:
        given = [f"LABEL_{i}" for i in range(classes)]
    labels = tuple(re.sub(r"\s+", " ", str(name)) for name in given)
    return StoredHead(
        labels, {"head/logits/kernel": weights, "head/logits/bias": tensors.get(bias)}
    )
