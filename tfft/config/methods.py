"""Section `method`: the methods of fine-tuning, each with its settings."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfft.config.base import Section
from tfft.config.durations import Duration, Minutes

ATTENTION = "query|value"
LINEAR = "query|key|value|attention/out|attention_output|up$|down$|feedforward"


class FullMethod(Section):
    """All variables are trainable."""

    name: Literal["full"] = "full"


class HeadMethod(Section):
    """Only the head is trainable."""

    name: Literal["head"]


class TopMethod(Section):
    """The head and the top stages of the backbone are trainable."""

    name: Literal["top"]
    stages: int = Field(ge=1, description="number of stages, counted from the top block")


class MaskMethod(Section):
    """The section `mask` alone decides what is trainable; it must cover all variables."""

    name: Literal["mask"]


class Unfreeze(Section):
    """Stages that become trainable at a time in the training."""

    at: Duration = Field(description="time from the start: steps, epochs or % of the training")
    stages: list[str] = Field(min_length=1, description="stages, globs or re:REGEX, as in `mask`")
    learning_rate: float = Field(1.0, gt=0, description="factor on the learning rate")


class GradualMethod(Section):
    """Gradual unfreezing: the head first, then the stages from top to bottom."""

    name: Literal["gradual"]
    every: Duration = Field(Duration(1, "epochs"), description="time between two unfreezings")
    stages: int = Field(1, ge=1, description="number of blocks that are unfrozen each time")
    factor: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate of each block, relative to the block above",
    )
    plan: list[Unfreeze] | None = Field(
        None, description="explicit times and stages, instead of every, stages and factor"
    )

    @model_validator(mode="after")
    def _check_plan(self) -> "GradualMethod":
        if self.plan is not None:
            fields = self.model_fields_set & {"every", "stages", "factor"}
            # A dumped config sets all fields, so their defaults are allowed.
            differing = [n for n in sorted(fields) if getattr(self, n) != _default(self, n)]
            if differing:
                raise ValueError(f"`{differing[0]}` has no effect beside `plan`")
            if not self.plan or self.plan[0].at.value != 0:
                raise ValueError("`plan` must begin at 0")
        return self


class LpFtMethod(Section):
    """A linear probe of the head first, then full fine-tuning from its weights."""

    name: Literal["lp_ft"]
    probe: Duration = Field(Duration(30, "%"), description="how long only the head is trained")
    probe_learning_rate: float = Field(
        1e-3, gt=0, description="peak learning rate of the linear probe"
    )


class _LowRank(Section):
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    scaling: Literal["standard", "rank_stabilized"] = Field(
        "standard", description="rank_stabilized: scale by alpha / sqrt(rank)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the update")
    targets: str = Field(
        ATTENTION, description="regular expression over the names of the projections to adapt"
    )


class LoraMethod(_LowRank):
    """Low-rank updates of frozen projections (LoRA)."""

    name: Literal["lora"]


class DoraMethod(_LowRank):
    """LoRA for the direction of each column, a trained vector for its magnitude (DoRA)."""

    name: Literal["dora"]


class QloraMethod(_LowRank):
    """LoRA on a backbone whose frozen kernels are quantized."""

    name: Literal["qlora"]
    bits: Literal[4, 8] = 8
    group: int = Field(64, ge=2, description="for 4 bits: number of inputs that share a scale")
    quantize: str = Field(
        LINEAR, description="regular expression over the names of the projections to quantize"
    )


class AdapterMethod(Section):
    """Bottleneck layers after the sublayers of each block."""

    name: Literal["adapter"]
    width: int = Field(48, ge=1, description="width of the bottleneck")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer",
        description="houlsby: after attention and feed-forward; pfeiffer: after feed-forward",
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"


class PrefixMethod(Section):
    """Trained keys and values before those of the text, in each attention layer."""

    name: Literal["prefix"]
    length: int = Field(16, ge=1, description="number of positions of the prefix")


class PromptMethod(Section):
    """Trained vectors before the embeddings of the text."""

    name: Literal["prompt"]
    length: int = Field(16, ge=1, description="number of positions of the prompt")
    start: Literal["vocabulary", "random"] = Field(
        "vocabulary", description="initial values: embeddings of random tokens, or noise"
    )


class Ia3Method(Section):
    """Trained vectors that scale keys, values and the hidden features of the feed-forward (IA3)."""

    name: Literal["ia3"]
    targets: str = Field(
        r"(^|/)(key|value)$",
        description="regular expression over the names of projections whose output is scaled",
    )
    feedforward: str = Field(
        r"(^|/)(down|feedforward_output_dense)$",
        description="regular expression over the names of projections whose input is scaled",
    )


class BitfitMethod(Section):
    """Biases and the head are trainable (BitFit)."""

    name: Literal["bitfit"]


class NormMethod(Section):
    """Normalization layers and the head are trainable."""

    name: Literal["norm"]


class AutoMethod(Section):
    """Method, learning rate, epochs and batch are set from the data, the backbone and the time."""

    name: Literal["auto"]
    time: Minutes | None = Field(
        None, description="time for the training, e.g. '10 minutes'; default: no limit"
    )


MethodConfig = Annotated[
    AutoMethod
    | FullMethod
    | HeadMethod
    | TopMethod
    | MaskMethod
    | GradualMethod
    | LpFtMethod
    | LoraMethod
    | DoraMethod
    | QloraMethod
    | AdapterMethod
    | PrefixMethod
    | PromptMethod
    | Ia3Method
    | BitfitMethod
    | NormMethod,
    Field(discriminator="name"),
]


def _default(section: Section, name: str) -> object:
    return type(section).model_fields[name].default
