"""A pretrained model and what describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing them at run time would load TensorFlow
    import keras
    import numpy as np


@dataclass(frozen=True)
class Stage:
    """A part of the model that is frozen, trained or scaled as a unit.

    Attributes:
        name: such as `embeddings`, `block_0` or `head`; with two backbones `text/block_0`.
        pattern: regular expression, matched from the start of a variable's path.
    """

    name: str
    pattern: str

    @property
    def tower(self) -> str:
        """Name of its backbone, `text` or `image`; empty where there is one backbone."""
        return self.name.rpartition("/")[0]

    @property
    def part(self) -> str:
        """Its name within the backbone, such as `block_0`."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class StoredHead:
    """The head that a checkpoint holds.

    Attributes:
        labels: class names in the order of the outputs.
        weights: variable paths of tfft's head -> arrays.
        kind: what it predicts: `rows`, or `tags` or `answers` by logits for each token.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, "np.ndarray"]
    kind: str = "rows"


@dataclass(frozen=True)
class HeadStyle:
    """How a model family's classifier computes its logits from the features.

    Attributes:
        pooling: `pooled`, `first` or `mean`: which vector of the features it reads; `tokens`: that
            of each token.
        activation: activation of a dense layer between the vector and the logits; None: no such
            layer.
    """

    pooling: str
    activation: str | None = None


@dataclass(frozen=True)
class ImageSpec:
    """The images that a backbone reads.

    Attributes:
        size: height and width in pixels.
        resize: how an image of another shape gets this size: `crop` (resize the shorter side and
            keep the centre), `stretch`, or `pad` (resize the longer side, the rest is black).
        interpolation: `bilinear`, `bicubic` or `nearest`; with antialiasing when an image shrinks.
        crop_fraction: with `crop`, size of the centre as a share of the resized shorter side; with
            `stretch`, as a share of both sides.
    """

    size: tuple[int, int]
    resize: str = "crop"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0


@dataclass(frozen=True)
class Feature:
    """An output of a backbone.

    Attributes:
        width: D.
        axes: a letter for each axis: `BD`, `BTD` or `BhwD`, of B rows, T tokens, and h x w places.
        stride: pixels of the image from one place to the next, down and across; None without
            places, or where their number is not known.
    """

    width: int
    axes: str
    stride: tuple[float, float] | None = None


@dataclass(frozen=True)
class Backbone:
    """A pretrained Keras model and its description.

    Attributes:
        model: for text, takes `{token_ids, padding_mask, segment_ids}`, each int32 [B, T]; for
            images, `{image}`, float32 [B, H, W, 3] from 0 to 255, RGB, and scales it inside; two
            backbones in one take all of them. Returns the features by name: `pooled` [B, D],
            `sequence` [B, T, D], `map` [B, h, w, D].
        stages: bottom to top; each variable belongs to exactly one.
        head_style: how the model family's classifier reads the features.
        fingerprint: digest of the pretrained weights and the architecture.
        description: plain data from which `backbones.rebuild` builds the architecture.
        head: the head stored in the checkpoint; None without one.
        max_length: number of positions; None: no limit.
        image_spec: the images that it reads; None for text.
        tokenizer: description of the tokenizer that its graph contains (`hub:`); None without one.
    """

    model: "keras.Model"
    stages: tuple[Stage, ...]
    head_style: HeadStyle
    fingerprint: str
    description: Mapping[str, Any]
    head: StoredHead | None = None
    max_length: int | None = None
    image_spec: ImageSpec | None = None
    tokenizer: str | None = None

    @property
    def features(self) -> dict[str, Feature]:
        """Description of the features by name."""
        return {name: self._feature(tensor.shape) for name, tensor in self.model.output.items()}

    def _feature(self, shape: tuple[int | None, ...]) -> Feature:
        width, axes = int(shape[-1]), {2: "BD", 3: "BTD", 4: "BhwD"}[len(shape)]
        if axes != "BhwD":
            return Feature(width, axes)
        sizes = tuple(zip(self.image_spec.size, shape[1:3], strict=True))
        known = all(places for _, places in sizes)
        return Feature(width, axes, tuple(size / n for size, n in sizes) if known else None)

    @property
    def reads(self) -> tuple[str, ...]:
        """Kinds of input: `text`, `image` or both."""
        names = {tensor.name for tensor in self.model.inputs}
        inputs = {"text": "token_ids", "image": "image"}
        return tuple(kind for kind, name in inputs.items() if name in names)
