"""Image backbones from KerasHub networks, for its presets and for timm checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfft.backbones import blocks, pixels
from tfft.spec import Backbone, HeadStyle, ImageSpec
from tfft.utils.errors import UserError

# Captures the block in a variable's path: of convolutional networks, then of transformers.
_BLOCK = (
    r"^(stack\d+_block\d+|stage_\d+_block_\d+|block_\d+_\d+|block\d+[a-z]?)(?=[_/])"
    r"|((?:stage_\d+/)?(?:\w*_)?(?:layer|layers|block|blocks)_\d+)/|^(stage_\d+)/"
)


class Padded(keras.layers.Layer):
    """Layer that pads the input of another layer explicitly.

    Args:
        layer: a convolution or pooling layer with `padding="valid"`.
        width: border on each side, in pixels.
        value: value of the border.
    """

    def __init__(self, layer: keras.layers.Layer, width: int, value: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer, self._width, self._value = layer, width, value

    def call(self, x):
        """Pad the map and apply the layer, [B, H, W, C] -> [B, h, w, C']."""
        border = (self._width, self._width)
        x = ops.pad(x, [(0, 0), border, border, (0, 0)], constant_values=self._value)
        return self.layer(x)


def is_image_model(inner: keras.Model) -> bool:
    """Return whether the model's only input is a batch of images, [B, H, W, C]."""
    return len(inner.inputs) == 1 and len(inner.inputs[0].shape) == 4


def wrap(
    inner: keras.Model,
    image_spec: ImageSpec,
    scaling: Mapping[str, Any],
    description: Mapping[str, Any],
    replace_layer: Callable[[keras.layers.Layer], keras.layers.Layer] = lambda layer: layer,
) -> Backbone:
    """Build a backbone from a KerasHub network.

    A network that returns a map becomes flat, so that it can be split between any two blocks.

    Args:
        inner: the network.
        image_spec: the images that it reads.
        scaling: arguments of `pixels.Pixels`.
        description: the backbone's description.
        replace_layer: returns the replacement of each layer; the default keeps all layers.

    Raises:
        UserError: The network returns neither a map nor tokens, or does not fit the image size.
    """
    height, width = image_spec.size
    image = keras.Input([height, width, 3], dtype="float32", name="image")
    x = pixels.Pixels(**scaling, name="pixels")(image)
    output = inner.output
    rank = len(output.shape) if isinstance(output, keras.KerasTensor) else 0
    try:
        if rank == 4:
            # `call` adds each layer to the new graph; `inner(x)` would add one nested model.
            outputs = keras.models.clone_model(inner, clone_function=replace_layer).call(x)
            model = pixels.encoder(image, outputs)
        elif rank == 3:
            # Tokens, [B, T, D]; the first is the class token.
            outputs = inner(x)
            model = keras.Model({"image": image}, {"pooled": outputs[:, 0], "sequence": outputs})
        else:
            raise UserError(f"model.backbone: {type(inner).__name__} must return a map or tokens")
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.image_size: {height} does not fit: {reason}") from None
    return Backbone(
        model=model,
        stages=blocks.stages_by_block([v.path for v in model.weights], _BLOCK, "stem", "top"),
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=image_spec,
    )
