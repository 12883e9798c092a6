"""KerasHub's networks of pictures as backbones: presets of its own, and timm's checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfft.backbones import blocks, pixels
from tfft.spec import Backbone, HeadStyle, ImageSpec
from tfft.utils.errors import UserError

# A block in the path of a variable: of convolutional networks, then of transformers.
_BLOCK = (
    r"^(stack\d+_block\d+|stage_\d+_block_\d+|block_\d+_\d+|block\d+[a-z]?)(?=[_/])"
    r"|((?:stage_\d+/)?(?:\w*_)?(?:layer|layers|block|blocks)_\d+)/|^(stage_\d+)/"
)


class Padded(keras.layers.Layer):
    """A layer that sees a border around its map.

    Args:
        layer: a convolution or a pooling without padding of its own.
        width, value: of the border.
    """

    def __init__(self, layer: keras.layers.Layer, width: int, value: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer, self._width, self._value = layer, width, value

    def call(self, x):
        """[B, H, W, C] -> [B, h, w, C']."""
        border = (self._width, self._width)
        x = ops.pad(x, [(0, 0), border, border, (0, 0)], constant_values=self._value)
        return self.layer(x)


def is_of_pictures(inner: keras.Model) -> bool:
    """Whether what it takes is one picture a row."""
    return len(inner.inputs) == 1 and len(inner.inputs[0].shape) == 4


def wrap(
    inner: keras.Model,
    image_spec: ImageSpec,
    scaling: Mapping[str, Any],
    description: Mapping[str, Any],
    change: Callable[[keras.layers.Layer], keras.layers.Layer] = lambda layer: layer,
) -> Backbone:
    """A network of KerasHub's, flat where it gives a map, so that it can be cut between any blocks.

    Args:
        scaling: arguments of `pixels.Pixels`.
        change: gives what stands in place of each layer.

    Raises:
        UserError: it gives neither a map nor tokens.
    """
    height, width = image_spec.size
    image = keras.Input([height, width, 3], dtype="float32", name="image")
    x = pixels.Pixels(**scaling, name="pixels")(image)
    output = inner.output
    rank = len(output.shape) if isinstance(output, keras.KerasTensor) else 0
    try:
        if rank == 4:
            # `call` goes from layer to layer; calling the model itself would be one step.
            found = keras.models.clone_model(inner, clone_function=change).call(x)
            model = pixels.encoder(image, found)
        elif rank == 3:
            found = inner(x)
            model = keras.Model({"image": image}, {"pooled": found[:, 0], "sequence": found})
        else:
            raise UserError(
                f"model.backbone: {type(inner).__name__} gives neither one map nor tokens"
            )
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.image_size: {height} does not go: {reason}") from None
    return Backbone(
        model=model,
        stages=blocks.stages([v.path for v in model.weights], _BLOCK, "stem", "top"),
        features={name: int(t.shape[-1]) for name, t in model.output.items()},
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=image_spec,
    )
