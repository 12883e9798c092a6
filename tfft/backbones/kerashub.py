"""KerasHub presets: text and image encoders, built by KerasHub's classes.

Features equal KerasHub's, which for some checkpoints differ from the original's: BERT and ALBERT
use tanh-gelu instead of gelu, a difference of 5e-3 on MiniLM. `hf:` loads the Hugging Face
checkpoint of the same model exactly.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import keras
import numpy as np

from tfft.backbones import kerashub_images, pixels
from tfft.config import ModelConfig
from tfft.preprocess.kerashub import check_encoder, read_settings
from tfft.spec import Backbone, HeadStyle, ImageSpec, Stage
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors

_BLOCK = re.compile(r"^(?:transformer_layer_\d+|group_\d+_inner_layer_\d+)$")
_INPUTS = {"token_ids", "padding_mask", "segment_ids"}


def load(config: ModelConfig, precision: str) -> Backbone:
    """Load a preset's encoder with its weights.

    Args:
        config: the `model` section; its backbone is `kerashub:` and a preset's name or folder.
        precision: a Keras dtype policy.

    Raises:
        UserError: There is no such preset, or its backbone is not a supported encoder.
    """
    import keras_hub

    name, image_size = config.backbone.partition(":")[2], config.image_size
    shape = {"image_shape": (image_size, image_size, 3)} if image_size is not None else {}
    # Bounds the sizes in the preset's files before KerasHub allocates the model.
    check_encoder(name)
    with library_errors(f"model.backbone: kerashub:{name} cannot be loaded"):
        inner = keras_hub.models.Backbone.from_preset(name, dtype=precision, **shape)
    if kerashub_images.is_image_model(inner):
        backbone = _build_image_backbone(inner, _image_settings(inner, name, config))
    elif image_size is not None or config.scaling is not None:
        raise UserError(f"model.image_size, model.scaling: kerashub:{name} reads no images")
    else:
        backbone = _wrap(inner)
    return replace(backbone, fingerprint=_fingerprint(inner, backbone.description))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """Build the architecture from its description, with random weights.

    Raises:
        UserError: KerasHub has no such backbone.
    """
    import keras_hub

    cls = getattr(keras_hub.models, description["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, keras_hub.models.Backbone)):
        raise UserError(f"keras-hub has no backbone {description['class']!r}")
    inner = cls.from_config({**description["config"], "dtype": precision})
    if "image_spec" in description:
        return _build_image_backbone(inner, description)
    return _wrap(inner)


def _build_image_backbone(inner: keras.Model, image_settings: Mapping[str, Any]) -> Backbone:
    spec = image_settings["image_spec"]
    image_spec = ImageSpec(**{**spec, "size": tuple(spec["size"])})
    settings = {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")}
    description = {"provider": "kerashub", "class": type(inner).__name__, "config": settings}
    description |= {"image_spec": dict(spec), "scaling": dict(image_settings["scaling"])}
    return kerashub_images.wrap(inner, image_spec, image_settings["scaling"], description)


def _image_settings(inner: keras.Model, name: str, config: ModelConfig) -> dict[str, Any]:
    """Return a preset's image size, resizing and scaling as plain data, `image_spec` and `scaling`.

    They come from its image converter unless the config overrides them.

    Raises:
        UserError: It has no image converter and the config sets no scaling.
    """
    import keras_hub

    # Refuses a hostile file before KerasHub reads it: it must not name other files.
    read_settings(name, "image_converter.json", optional=True)
    try:
        with library_errors("no image converter"):
            converter = keras_hub.layers.ImageConverter.from_preset(name)
    except UserError:
        converter = None
    # The size: of the config, of the converter, of the network, or 224.
    input_size = inner.inputs[0].shape[1]
    size = getattr(converter, "image_size", None) or (input_size or 224,) * 2
    if config.image_size is not None:
        size = (config.image_size, config.image_size)
    if config.scaling is not None:
        scaling = dict(pixels.SCALINGS[config.scaling])
    elif converter is None:
        raise UserError(f"model.scaling: kerashub:{name} has no image converter; set its scaling")
    else:
        # KerasHub computes x * scale + offset, tfft (x - mean) / deviation.
        scale, offset = (
            np.broadcast_to(np.asarray(v if v is not None else default, np.float64).ravel(), 3)
            for v, default in ((converter.scale, 1.0), (converter.offset, 0.0))
        )
        scaling = {"mean": (-offset / scale).tolist(), "deviation": (1 / scale).tolist()}
    # The default is KerasHub's.
    resize = "crop" if getattr(converter, "crop_to_aspect_ratio", True) else "stretch"
    if getattr(converter, "pad_to_aspect_ratio", False):
        resize = "pad"
    interpolation = str(getattr(converter, "interpolation", "bilinear"))
    image_spec = ImageSpec((int(size[0]), int(size[1])), resize, interpolation)
    return {"image_spec": asdict(image_spec), "scaling": scaling}


def _wrap(inner: keras.Model) -> Backbone:
    input_names = {tensor.name for tensor in inner.inputs}
    blocks = [layer.name for layer in inner.layers if _BLOCK.match(layer.name)]
    if not input_names <= _INPUTS or not blocks:
        raise UserError(
            f"model.backbone: {type(inner).__name__} is not a supported encoder "
            f"(inputs: {', '.join(sorted(input_names))})"
        )
    # All three, also where the preset reads fewer: every batch of texts has them.
    inputs = {name: keras.Input([None], dtype="int32", name=name) for name in sorted(_INPUTS)}
    outputs = inner({name: inputs[name] for name in input_names})
    # Backbones without a pooler return one tensor.
    if not isinstance(outputs, dict):
        outputs = {"sequence_output": outputs}
    renamed = {"sequence_output": "sequence", "pooled_output": "pooled"}
    outputs = {renamed[key]: value for key, value in outputs.items() if key in renamed}
    max_length = getattr(inner, "max_sequence_length", None)
    settings = {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")}
    return Backbone(
        model=keras.Model(inputs, outputs, name="encoder"),
        stages=_stages(inner, blocks),
        head_style=HeadStyle("pooled" if "pooled" in outputs else "first"),
        fingerprint="",
        description={"provider": "kerashub", "class": type(inner).__name__, "config": settings},
        max_length=max_length,
    )


def _stages(inner: keras.Model, blocks: list[str]) -> tuple[Stage, ...]:
    """Return the stages of the layers that have weights: embeddings, blocks and pooler."""
    layers = [layer.name for layer in inner.layers if layer.weights]
    pooler = [name for name in layers if name.startswith("pooled")]
    below = [name for name in layers if name not in blocks and name not in pooler]
    stages = [Stage("embeddings", f"(?:{'|'.join(map(re.escape, below))})/")]
    stages += [Stage(f"block_{i}", f"{re.escape(name)}/") for i, name in enumerate(blocks)]
    if pooler:
        stages.append(Stage("pooler", f"(?:{'|'.join(map(re.escape, pooler))})/"))
    return tuple(stages)


def _fingerprint(model: keras.Model, description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable.value).tobytes())
    return digest.hexdigest()[:16]
