"""Section `method`: the ways of fine-tuning, each with its settings."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfft.config.base import Duration, Minutes, Section

ATTENTION = "query|value"
LINEAR = "query|key|value|attention/out|attention_output|up$|down$|feedforward"


class FullMethod(Section):
    """Every variable moves."""

    name: Literal["full"] = "full"


class HeadMethod(Section):
    """The head alone moves."""

    name: Literal["head"]


class TopMethod(Section):
    """The head and the top stages of the backbone move."""

    name: Literal["top"]
    stages: int = Field(ge=1, description="stages of the backbone, counted from the top block")


class MaskMethod(Section):
    """The section `mask` alone decides; it must cover every variable."""

    name: Literal["mask"]


class Unfreeze(Section):
    """Stages that begin to move at some time."""

    at: Duration = Field(description="steps, epochs or % of the training, from its start")
    stages: list[str] = Field(min_length=1, description="stages, globs or re:REGEX, as in `mask`")
    learning_rate: float = Field(1.0, gt=0, description="factor on the learning rate")


class GradualMethod(Section):
    """The head first, then one more stage after another, top to bottom."""

    name: Literal["gradual"]
    every: Duration = Field(Duration(1, "epochs"), description="time between two unfreezings")
    stages: int = Field(1, ge=1, description="how many blocks are added each time")
    factor: float = Field(
        1.0, gt=0, le=1, description="on the rate of each block, per block from the top"
    )
    plan: list[Unfreeze] | None = Field(
        None, description="what to unfreeze when, in place of every, stages and factor"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "GradualMethod":
        if self.plan is not None:
            given = self.model_fields_set & {"every", "stages", "factor"}
            differing = [n for n in sorted(given) if getattr(self, n) != _default(self, n)]
            if differing:
                raise ValueError(f"`{differing[0]}` does nothing beside `plan`")
            if not self.plan or self.plan[0].at.value != 0:
                raise ValueError("`plan` must begin at 0")
        return self


class LpFtMethod(Section):
    """A linear probe first, then everything from there."""

    name: Literal["lp_ft"]
    probe: Duration = Field(Duration(30, "%"), description="how long the head moves alone")
    probe_learning_rate: float = Field(1e-3, gt=0, description="peak rate of the probe")


class _LowRank(Section):
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the addition is scaled by alpha / rank")
    scaling: Literal["standard", "rank_stabilized"] = Field(
        "standard", description="rank_stabilized: by alpha / sqrt(rank)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="on the addition's input")
    targets: str = Field(ATTENTION, description="regular expression over names of projections")


class LoraMethod(_LowRank):
    """Low-rank additions to frozen projections."""

    name: Literal["lora"]


class DoraMethod(_LowRank):
    """LoRA for the direction, a vector for the magnitude of each column."""

    name: Literal["dora"]


class QloraMethod(_LowRank):
    """LoRA on a backbone whose kernels are frozen in few bits."""

    name: Literal["qlora"]
    bits: Literal[4, 8] = 8
    group: int = Field(64, ge=2, description="inputs that share a scale, for 4 bits")
    quantize: str = Field(LINEAR, description="projections whose kernels are quantized")


class AdapterMethod(Section):
    """Bottleneck layers behind the sublayers of every block."""

    name: Literal["adapter"]
    width: int = Field(48, ge=1, description="of the bottleneck")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer", description="houlsby: behind attention and feed-forward; pfeiffer: the latter"
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"


class PrefixMethod(Section):
    """Trained keys and values before those of the text, in every attention."""

    name: Literal["prefix"]
    length: int = Field(16, ge=1, description="positions of the prefix")


class PromptMethod(Section):
    """Trained vectors before the embedded text."""

    name: Literal["prompt"]
    length: int = Field(16, ge=1, description="positions of the prompt")
    start: Literal["vocabulary", "random"] = Field(
        "vocabulary", description="begin as embeddings of random tokens, or as noise"
    )


class Ia3Method(Section):
    """Vectors that scale keys, values and the inner width of the feed-forward."""

    name: Literal["ia3"]
    targets: str = Field(
        r"(^|/)(key|value)$", description="regular expression: projections whose output is scaled"
    )
    feedforward: str = Field(
        r"(^|/)(down|feedforward_output_dense)$", description="projections whose input is scaled"
    )


class BitfitMethod(Section):
    """Biases and the head move."""

    name: Literal["bitfit"]


class NormMethod(Section):
    """Norms and the head move."""

    name: Literal["norm"]


class AutoMethod(Section):
    """Method, rate, epochs and batch are chosen from the data, the backbone and the time."""

    name: Literal["auto"]
    time: Minutes | None = Field(None, description="for the training: '10 minutes'; default: any")


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
