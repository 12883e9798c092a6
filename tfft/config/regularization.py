"""Section `regularization`: what keeps the model from fitting the training rows too well."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfft.config.base import Section


class L2Sp(Section):
    """A pull toward the pretrained weights, and toward zero for what is new."""

    alpha: float = Field(0.1, ge=0, description="alpha / 2 * |w - pretrained|^2")
    beta: float = Field(0.01, ge=0, description="beta / 2 * |w|^2 of head and additions")


class RDrop(Section):
    """Two passes with different dropout must agree."""

    alpha: float = Field(1.0, gt=0, description="weight of the divergence between the two")


class Fgm(Section):
    """A second pass with the embeddings moved a step in the direction of the gradient."""

    name: Literal["fgm"]
    epsilon: float = Field(1.0, gt=0, description="length of the step, for each row")
    weight: float = Field(1.0, gt=0, description="of the second pass beside the first")


class FreeLb(Section):
    """Several passes, the embeddings moved further each time; their gradients are averaged."""

    name: Literal["freelb"]
    steps: int = Field(3, ge=1)
    step_size: float = Field(0.1, gt=0, description="length of a step, for each row")
    epsilon: float = Field(0.3, gt=0, description="the furthest that a row is moved")


class Distillation(Section):
    """Learn a bigger model's answers too."""

    teacher: str = Field(description="run directory of the teacher, of the same classes")
    temperature: float = Field(2.0, gt=0)
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher; the labels have the rest")


class RegularizationConfig(Section):
    """All off by default."""

    l1: float = Field(0.0, ge=0, description="l1 * |w|, of kernels")
    l2: float = Field(0.0, ge=0, description="l2 / 2 * |w|^2, of kernels")
    l2_sp: L2Sp | None = None
    mixout: float = Field(
        0.0, ge=0, lt=1, description="share of each kernel that is pretrained in a step"
    )
    r_drop: RDrop | None = None
    adversarial: Annotated[Fgm | FreeLb, Field(discriminator="name")] | None = None
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _apart(self) -> "RegularizationConfig":
        if self.r_drop is not None and self.adversarial is not None:
            raise ValueError("one of `r_drop` and `adversarial`, not both")
        return self


class SurgeryConfig(Section):
    """Changes to the pretrained model before any method."""

    reinitialize: int = Field(
        0, ge=0, description="blocks, from the top, that begin anew (the pooler with them)"
    )
    drop: list[str] = Field(default_factory=list, description="blocks that are taken out")
    pooler: Literal["keep", "new"] = Field("keep", description="new: the pooler begins anew")
    shrink: float | None = Field(
        None, ge=0, le=1, description="weights are multiplied by it, then noise is added"
    )
    perturb: float = Field(0.0, ge=0, description="share of a fresh initialization that is added")

    @model_validator(mode="after")
    def _both(self) -> "SurgeryConfig":
        if self.perturb and self.shrink is None:
            raise ValueError("`perturb` goes with `shrink`")
        return self
