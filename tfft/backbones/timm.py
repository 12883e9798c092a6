"""timm checkpoints (Wightman 2019, "PyTorch Image Models"), through KerasHub's converters.

KerasHub converts ResNet, ResNetV2, DenseNet, EfficientNet, MobileNetV3, VGG, CSPNet and DarkNet.
Its DenseNet uses TensorFlow's padding where timm's uses PyTorch's; this module corrects it.
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

# Architecture -> prefix and form of the classifier's tensors, if the classifier is one linear map
# of the pooled features.
_HEADS = {
    "resnetv2": ("head.fc", "conv"),
    "resnet": ("fc", "transpose"),
    "densenet": ("classifier", "transpose"),
    "efficientnet": ("classifier", "transpose"),
    "csp": ("head.fc", "transpose"),
    "darknet": ("head.fc", "transpose"),
}
_UNSUPPORTED = r"efficientnet_e[slm]"  # features in keras-hub 0.32 differ by up to 75
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def load(config: ModelConfig, precision: str) -> Backbone:
    """Load a checkpoint's network with its weights.

    Args:
        config: the `model` section; its backbone is `timm:` and a repository or folder.
        precision: a Keras dtype policy.

    Raises:
        UserError: It cannot be read, or KerasHub has no converter for its architecture.
    """
    import keras_hub

    folder = pretrained.folder(config.backbone.partition(":")[2], config.revision)
    settings = pretrained.read_json(folder / "config.json")
    files = weight_files(folder)  # checked before KerasHub, which also accepts a pickle's name
    architecture = settings.get("architecture")
    # With either of these keys KerasHub would choose the converter of another format.
    if not isinstance(architecture, str) or {"registered_name", "model_type"} & settings.keys():
        raise UserError(f"{folder / 'config.json'}: names no timm architecture; hf: loads others")
    if re.match(_UNSUPPORTED, architecture):
        raise UserError(
            f"model.backbone: {architecture} is not supported: KerasHub's converter builds a "
            "different network"
        )
    message = f"model.backbone: {architecture} cannot be loaded through KerasHub"
    with (
        library_errors(message),
        contextlib.redirect_stdout(io.StringIO()),  # it prints every tensor's name
    ):
        inner = keras_hub.models.Backbone.from_preset(str(folder), dtype=precision)
    image_spec, scaling = _image_settings(settings, folder)
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
        width, head = backbone.features["pooled"].width, None
        if config.head == "checkpoint":
            head = _head(settings, architecture, tensors, width)
        return replace(backbone, fingerprint=tensors.fingerprint(settings), head=head)


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """Build the architecture from its description, with random weights."""
    import keras_hub

    cls = getattr(keras_hub.models, description["class"])
    return _wrap(cls.from_config({**description["config"], "dtype": precision}), description)


def _wrap(inner: keras.Model, description: Mapping[str, Any]) -> Backbone:
    spec = description["image_spec"]
    image_spec = ImageSpec(**{**spec, "size": tuple(spec["size"])})
    replace_layer = (
        _with_pytorch_padding if "DenseNet" in description["class"] else (lambda layer: layer)
    )
    return kerashub_images.wrap(
        inner, image_spec, description["scaling"], description, replace_layer
    )


def _with_pytorch_padding(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a replacement for DenseNet's first two strided layers, with PyTorch's padding.

    PyTorch pads both sides equally, TensorFlow may pad the end by one more.
    """
    if layer.name == "conv1_conv":
        layer.padding = "valid"
        return Padded(layer, 3, 0.0, name="conv1_padded")
    if layer.name == "pool1":
        layer.padding = "valid"
        return Padded(layer, 1, 0.0, name="pool1_padded")  # 0 is the minimum after a ReLU
    return layer


def _image_settings(settings: Mapping[str, Any], folder: Path) -> tuple[ImageSpec, dict[str, Any]]:
    """Return the image spec and the pixel scaling that the checkpoint was trained with.

    Raises:
        UserError: A value of the config has the wrong type or is out of bounds.
    """
    # Files from before 2023 have these keys at the top level.
    pretrained_cfg = settings.get("pretrained_cfg") or settings
    where = f"{folder / 'config.json'}: pretrained_cfg"
    if not isinstance(pretrained_cfg, Mapping):
        raise UserError(f"{where} must be an object. Received: {pretrained_cfg!r:.60}")
    shape = pretrained_cfg.get("input_size", (3, 224, 224))
    if not isinstance(shape, list | tuple) or len(shape) != 3 or shape[0] != 3:
        raise UserError(f"{where}: input_size must be [3, height, width]. Received: {shape!r:.60}")
    height, width = (processor.check_side(n, f"{where}: input_size") for n in shape[1:])
    crop_fraction = bounded(
        pretrained_cfg.get("crop_pct") or 0.875, f"{where}: crop_pct", (0.01, 1)
    )
    mean = list(
        processor.check_triple(pretrained_cfg.get("mean", pixels.IMAGENET_MEAN), f"{where}: mean")
    )
    deviation = pretrained_cfg.get("std", pixels.IMAGENET_DEVIATION)
    deviation = list(processor.check_triple(deviation, f"{where}: std", least=1e-6))
    interpolation = pretrained_cfg.get("interpolation", "bicubic")
    if interpolation not in _INTERPOLATIONS:
        interpolation = "bicubic"  # the closest to lanczos
    crop_mode = str(pretrained_cfg.get("crop_mode", "center"))
    resize = {"squash": "stretch", "border": "pad"}.get(crop_mode, "crop")
    image_spec = ImageSpec(
        (height, width), resize, interpolation, 1.0 if resize == "pad" else crop_fraction
    )
    return image_spec, {"scale": 1 / 255, "mean": mean, "deviation": deviation}


def _head(
    settings: Mapping[str, Any], architecture: str, tensors: Tensors, width: int
) -> StoredHead:
    family = next((f for f in _HEADS if architecture.startswith(f)), None)
    prefix, form = _HEADS.get(family or "", ("", ""))
    kernel, bias = (
        weight_map.Entry((f"{prefix}.weight",), form),
        weight_map.Entry((f"{prefix}.bias",)),
    )
    if family is None or not tensors.has(kernel) or not tensors.has(bias):
        raise UserError(
            f"model.head: checkpoint: {architecture} has no classifier of one linear map; "
            "use head: new"
        )
    classes = math.prod(tensors.shape(bias.tensors[0]))
    shape = (1, 1, width, classes) if form == "conv" else (width, classes)
    weights = tensors.get(kernel, shape).reshape(width, classes)
    label_names = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get(
        "label_names"
    )
    if not isinstance(label_names, list) or len(label_names) != classes:
        label_names = [f"LABEL_{i}" for i in range(classes)]
    labels = tuple(re.sub(r"\s+", " ", str(name)) for name in label_names)
    return StoredHead(
        labels, {"head/logits/kernel": weights, "head/logits/bias": tensors.get(bias, (classes,))}
    )
