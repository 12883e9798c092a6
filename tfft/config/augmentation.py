"""Section `augmentation`: random changes to the training images, drawn again in each epoch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tfft.config.base import Section

Share = Annotated[float, Field(gt=0, le=1)]


class Crop(Section):
    """A random crop of each image, resized (Szegedy et al. 2015, section 6)."""

    area: tuple[Share, Share] = Field(
        (0.35, 1.0), description="lowest and highest area of the crop, as a share of the image"
    )
    ratio: tuple[float, float] = Field(
        (0.75, 4 / 3), description="lowest and highest width / height of the crop"
    )

    @field_validator("area", "ratio")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be the lowest and the highest value, in order, above 0")
        return value


class RandAugment(Section):
    """Random operations, drawn for each batch (Cubuk et al. 2020), by keras.layers.RandAugment."""

    layers: int = Field(2, ge=1, le=10, description="number of operations in sequence")
    magnitude: float = Field(0.5, ge=0, le=1, description="strength of the operations")


class AugmentationConfig(Section):
    """Random changes to the training images; all are off by default."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    crop: Crop | None = None
    rotation: float = Field(0.0, ge=0, le=180, description="largest angle, in degrees")
    brightness: float = Field(
        0.0, ge=0, le=1, description="largest change, as a share of the range"
    )
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=1)
    rand_augment: RandAugment | None = None
    erasing: float = Field(
        0.0, ge=0, le=1, description="probability that a rectangle of an image is blanked"
    )
    mixup: float = Field(
        0.0, ge=0, description="alpha, e.g. 0.2; images and labels are mixed in pairs"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha, e.g. 1; a rectangle of an image and a share of its label come from "
        "another one",
    )
    variants: int | None = Field(
        None,
        ge=1,
        le=64,
        description="number of variants of each image that are drawn once, whose features are "
        "cached (train.cache_features), one of them for each epoch; default: draw in each epoch, "
        "without a cache",
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "AugmentationConfig":
        if self.mixup and self.cutmix:
            raise ValueError("only one of `mixup` and `cutmix` can be set")
        if self.variants is not None and (self.mixup or self.cutmix):
            raise ValueError(
                "`variants` cannot be combined with mixup or cutmix, which pair images in each "
                "epoch"
            )
        return self

    @property
    def any(self) -> bool:
        """Whether any augmentation is on."""
        return any(value for name, value in self if name != "variants" and value not in (None, 0.0))

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed in pairs."""
        return bool(self.mixup or self.cutmix)
