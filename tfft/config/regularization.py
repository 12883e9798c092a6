"""Sections `regularization` and `model.surgery`: against overfitting, and before the training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfft.config.base import Section


class L2Sp(Section):
    """Penalty on the distance to the pretrained weights, and on the size of new weights (L2-SP)."""

    alpha: float = Field(0.1, ge=0, description="alpha / 2 * |w - pretrained|^2")
    beta: float = Field(
        0.01, ge=0, description="beta / 2 * |w|^2 of the head and of injected weights"
    )


class RDrop(Section):
    """Penalty on the divergence of two passes with different dropout (R-Drop)."""

    alpha: float = Field(1.0, gt=0, description="weight of the divergence")


class Fgm(Section):
    """Adversarial training: a second pass with perturbed embeddings (FGM)."""

    name: Literal["fgm"]
    epsilon: float = Field(
        1.0, gt=0, description="norm of the perturbation of each row, along the gradient"
    )
    weight: float = Field(1.0, gt=0, description="weight of the second pass; the first has 1")


class FreeLb(Section):
    """Adversarial training: the mean gradient of several perturbed passes (FreeLB)."""

    name: Literal["freelb"]
    steps: int = Field(3, ge=1)
    step_size: float = Field(
        0.1, gt=0, description="norm of a step of the perturbation of each row"
    )
    epsilon: float = Field(0.3, gt=0, description="largest norm of the perturbation of a row")


class Distillation(Section):
    """Knowledge distillation from the probabilities of a teacher model."""

    teacher: str = Field(description="run directory of the teacher, which has the same classes")
    temperature: float = Field(2.0, gt=0)
    weight: float = Field(
        0.5, gt=0, le=1, description="weight of the teacher's loss; the labels have the rest"
    )


class RegularizationConfig(Section):
    """Regularization of the training; all is off by default."""

    l1: float = Field(0.0, ge=0, description="l1 * |w|, of kernels")
    l2: float = Field(0.0, ge=0, description="l2 / 2 * |w|^2, of kernels")
    l2_sp: L2Sp | None = None
    mixout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each kernel that a step replaces by the pretrained values",
    )
    r_drop: RDrop | None = None
    adversarial: Annotated[Fgm | FreeLb, Field(discriminator="name")] | None = None
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> "RegularizationConfig":
        if self.r_drop is not None and self.adversarial is not None:
            raise ValueError("only one of `r_drop` and `adversarial` can be set")
        return self


class SurgeryConfig(Section):
    """Changes to the pretrained model before the method is applied."""

    reinitialize: int = Field(
        0,
        ge=0,
        description="number of top blocks that are initialized again, with the pooler",
    )
    drop: list[str] = Field(default_factory=list, description="names of blocks to remove")
    pooler: Literal["keep", "new"] = Field(
        "keep", description="new: the pooler is initialized again"
    )
    shrink: float | None = Field(
        None, ge=0, le=1, description="factor on the pretrained weights (shrink and perturb)"
    )
    perturb: float = Field(
        0.0, ge=0, description="factor on a fresh initialization that is added to the weights"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "SurgeryConfig":
        if self.perturb and self.shrink is None:
            raise ValueError("`perturb` needs `shrink`")
        return self
