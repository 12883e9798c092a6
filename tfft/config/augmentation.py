"""Section `augmentation`: how training pictures are changed, anew in each epoch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tfft.config.base import Section

Share = Annotated[float, Field(gt=0, le=1)]


class Crop(Section):
    """A random part of each picture, resized (Szegedy et al. 2015, section 6)."""

    area: tuple[Share, Share] = Field((0.35, 1.0), description="share of the picture that is kept")
    ratio: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of the part")

    @field_validator("area", "ratio")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be the lowest and the highest value, in order, above 0")
        return value


class RandAugment(Section):
    """Several operations, drawn for each batch (Cubuk et al. 2020), by keras.layers.RandAugment."""

    layers: int = Field(2, ge=1, le=10, description="operations one after another")
    magnitude: float = Field(0.5, ge=0, le=1, description="how strong they are")


class AugmentationConfig(Section):
    """All off by default; only training pictures are changed."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    crop: Crop | None = None
    rotation: float = Field(0.0, ge=0, le=180, description="degrees at most, to either side")
    brightness: float = Field(0.0, ge=0, le=1, description="strongest change, as a share")
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=1)
    rand_augment: RandAugment | None = None
    erasing: float = Field(
        0.0, ge=0, le=1, description="share of the pictures in which a rectangle is blanked"
    )
    mixup: float = Field(
        0.0, ge=0, description="alpha; 0.2: pictures are mixed in pairs, and labels"
    )
    cutmix: float = Field(
        0.0, ge=0, description="alpha; 1: a rectangle comes from another picture, and its label"
    )
    variants: int | None = Field(
        None,
        ge=1,
        le=64,
        description="so many draws of each picture go through the frozen stages once, and are "
        "taken in turn (train.cache_features); default: always anew, and no cache",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "AugmentationConfig":
        if self.mixup and self.cutmix:
            raise ValueError("one of `mixup` and `cutmix`, not both")
        if self.variants is not None and (self.mixup or self.cutmix):
            raise ValueError("`variants` does not go with mixup and cutmix, which pair anew")
        return self

    @property
    def any(self) -> bool:
        """Whether a picture is changed at all."""
        return any(value for name, value in self if name != "variants" and value not in (None, 0.0))

    @property
    def mixes(self) -> bool:
        """Whether rows are mixed, and so their labels."""
        return bool(self.mixup or self.cutmix)
