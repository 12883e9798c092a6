"""Two backbones as one: each reads its part of a row, and their vectors are joined.

The combined model is one flat graph. Variables and stages of a backbone lie below its name, such as
`text/block_0`, so that methods, masks and checkpoints work on it as on a single backbone. Its only
feature is `pooled`: the vector that the classifier of each model family reads, side by side.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras

from tfft.backbones.pooling import pool
from tfft.config import ModelConfig
from tfft.spec import Backbone, HeadStyle, Stage
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


def load(towers: Mapping[str, ModelConfig], load_tower: Callable[[Any], Backbone]) -> Backbone:
    """Load the backbones of a config as one.

    Args:
        towers: the config of each backbone by its name, which is the kind of input that it reads.
        load_tower: loads a backbone.

    Raises:
        UserError: one cannot be loaded, or reads something else; the message names its key.
    """
    parts = {}
    for name, config in towers.items():
        try:
            parts[name] = load_tower(config)
        except UserError as error:
            raise UserError(_of_tower(name, str(error))) from None
        if parts[name].reads != (name,):
            raise UserError(
                f"model.{name}.backbone: must read {name}s. Received: {config.backbone}, which "
                f"reads {parts[name].reads[0]}s"
            )
    return combine(parts)


def _of_tower(name: str, message: str) -> str:
    """Return an error of a single backbone, with the key of that backbone in two."""
    if message.startswith("model.surgery."):  # beside both; it names blocks of one
        return message.replace("'block_", f"'{name}/block_")
    key, dot, rest = message.partition("model.")
    return f"model.{name}.{rest}" if dot and not key else f"model.{name}: {message}"


def combine(parts: Mapping[str, Backbone]) -> Backbone:
    """Return one backbone of several.

    Args:
        parts: the backbones by name, `text` and `image`; their layers and variables are renamed.
    """
    inputs: dict[str, keras.KerasTensor] = {}
    vectors, stages = [], []
    for name, part in parts.items():
        part_inputs = {tensor.name: tensor for tensor in part.model.inputs}
        mask = part_inputs.get("padding_mask")
        kind = part.head_style.pooling
        vectors.append(pool(kind, part.model.output, mask, name=f"{name}_pooling"))
        keras_internals.move_below(part.model, name)
        inputs |= part_inputs
        stages += [Stage(f"{name}/{s.name}", f"{name}/(?:{s.pattern})") for s in part.stages]
    joined = keras.layers.Concatenate(dtype="float32", name="joined")(vectors)
    fingerprints = " ".join(f"{name} {part.fingerprint}" for name, part in parts.items())
    descriptions = {name: dict(part.description) for name, part in parts.items()}
    return replace(
        parts["text"],
        model=keras.Model(inputs, {"pooled": joined}, name="encoder"),
        stages=tuple(stages),
        head_style=HeadStyle("pooled"),
        fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest()[:16],
        description={"provider": "towers", "towers": descriptions},
        image_spec=parts["image"].image_spec,
    )
