"""The small sections: each a page of the YAML that fits on a screen."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tfft.config.base import Duration, Interval, Section
from tfft.config.regularization import SurgeryConfig

# provider -> the keys of the section `model` that are for it
PROVIDERS: dict[str, tuple[str, ...]] = {
    "hf": ("revision", "weights", "image_size", "dropout", "head", "surgery.drop"),
    "hub": ("image_size", "scaling", "stages", "tokenizer"),
    "keras": ("weights", "image_size"),
    "kerashub": ("image_size", "scaling"),
    "timm": ("revision", "image_size", "head"),
}


class ModelConfig(Section):
    """The pretrained backbone."""

    backbone: str = Field(
        description="hf:REPO_OR_FOLDER, hub:HANDLE_OR_FOLDER (a SavedModel), keras:NAME (of "
        "keras.applications), kerashub:PRESET_OR_FOLDER or timm:REPO_OR_FOLDER"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    weights: str | None = Field(
        None,
        description="a file in place of the checkpoint's; for keras: `imagenet` (the default), "
        "`none`, or a file",
    )
    image_size: Annotated[int, Field(ge=16, le=4096)] | None = Field(
        None, description="height and width of pictures; default: what the backbone was trained on"
    )
    scaling: Literal["unit", "tf", "torch", "caffe", "none"] | None = Field(
        None,
        description="what a hub: SavedModel wants of pixels: unit, from 0 to 1 (the default, TF "
        "Hub's convention); tf, from -1 to 1; torch and caffe, ImageNet's mean; none, 0 to 255. Of "
        "kerashub: in place of what the preset says",
    )
    stages: list[str] | None = Field(
        None, description="of hub: regular expressions over variable names, bottom to top"
    )
    tokenizer: str | None = Field(
        None,
        description="of hub: texts: the preprocessing SavedModel whose vocabulary counts; default: "
        "the vocabulary among the encoder's own assets",
    )
    head: Literal["new", "checkpoint"] = Field(
        "new", description="checkpoint: keep the classification head and labels stored there"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="overrides the checkpoint's rates")
    surgery: SurgeryConfig = SurgeryConfig()

    @field_validator("backbone")
    @classmethod
    def _known_provider(cls, value: str) -> str:
        provider, _, name = value.partition(":")
        if provider not in PROVIDERS or not name:
            raise ValueError(f"must be PROVIDER:NAME with a provider of {', '.join(PROVIDERS)}")
        return value

    @model_validator(mode="after")
    def _only_for_its_provider(self) -> "ModelConfig":
        provider = self.backbone.partition(":")[0]
        given = {
            "revision": self.revision is not None,
            "weights": self.weights is not None,
            "image_size": self.image_size is not None,
            "scaling": self.scaling is not None,
            "stages": self.stages is not None,
            "tokenizer": self.tokenizer is not None,
            "head": self.head != "new",
            "dropout": self.dropout is not None,
            "surgery.drop": bool(self.surgery.drop),
        }
        for name in (name for name, is_given in given.items() if is_given):
            if name not in PROVIDERS[provider]:
                others = [f"{p}:" for p, names in PROVIDERS.items() if name in names]
                raise ValueError(f"`{name}` is for {' and '.join(others)} backbones only")
        return self


class TaskConfig(Section):
    """What is predicted, and by which head and loss."""

    name: Literal[
        "text_classification", "image_classification", "text_multilabel", "image_multilabel"
    ] = "text_classification"
    pooling: Literal["auto", "pooled", "first", "mean"] = Field(
        "auto", description="auto: the checkpoint's own (its pooler, else the first token)"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="before the logits")
    loss: Literal["cross_entropy", "focal", "mse", "smooth_l1", "huber"] = Field(
        "cross_entropy", description="the last three: of the probabilities"
    )
    focal_gamma: float = Field(2.0, ge=0, description="for loss: focal")
    delta: float = Field(
        0.5, gt=0, description="where smooth_l1 and huber turn from square to straight"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None, description="balanced: n / (classes * n_class); or a weight for each class name"
    )

    @property
    def modality(self) -> Literal["text", "image"]:
        """What it reads."""
        return "image" if self.name.startswith("image_") else "text"

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.name.endswith("_multilabel")

    @model_validator(mode="after")
    def _loss_options(self) -> "TaskConfig":
        if self.loss != "cross_entropy" and self.label_smoothing:
            raise ValueError("`label_smoothing` is for loss: cross_entropy only")
        if self.multi_label and self.loss not in ("cross_entropy", "focal"):
            raise ValueError(
                f"`loss: {self.loss}` is of one class a row; tagging has cross_entropy"
            )
        if self.multi_label and self.class_weights is not None:
            raise ValueError("`class_weights` are of one class a row; for rare tags: loss: focal")
        return self


class MaskRule(Section):
    """One rule over variables; the first that matches decides, before the method's own."""

    match: str = Field(description="a stage, a glob over variable paths, or re:REGEX")
    trainable: bool = True
    learning_rate: float = Field(1.0, gt=0, description="factor on the learning rate")

    @model_validator(mode="after")
    def _frozen_has_no_rate(self) -> "MaskRule":
        if not self.trainable and self.learning_rate != 1.0:
            raise ValueError("`learning_rate` does nothing where trainable is false")
        return self


class Swa(Section):
    """Stochastic weight averaging: the mean of the weights at some steps."""

    start: Duration = Duration(75, "%")
    every: Duration = Field(Duration(1, "epochs"), description="between two weights in the mean")


class OptimizerConfig(Section):
    """The optimizer, its schedule, decay, clipping and averages."""

    name: Literal[
        "adadelta",
        "adafactor",
        "adagrad",
        "adam",
        "adamax",
        "adamw",
        "ftrl",
        "lamb",
        "lion",
        "muon",
        "nadam",
        "rmsprop",
        "schedule_free_adamw",
        "sgd",
    ] = "adamw"
    learning_rate: float = Field(5e-5, gt=0, description="the peak, after warm-up")
    schedule: Literal["linear", "cosine", "polynomial", "slanted_triangular", "constant"] = "linear"
    warmup: Duration = Duration(10, "%")
    end_factor: float = Field(
        0.0, ge=0, le=1, description="the last rate, as a share of the peak; ULMFiT: 1/32"
    )
    power: float = Field(2.0, gt=0, description="schedule: polynomial only")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate for each stage below the head"
    )
    weight_decay: float = Field(0.01, ge=0, description="not on biases and norms")
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    options: dict[str, float | int | bool | str | list[str]] = Field(
        default_factory=dict, description="further arguments of the Keras optimizer"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="of all gradients together")
    clip_value: float | None = Field(None, gt=0, description="of each element of the gradients")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are validated and kept"
    )
    swa: Swa | None = Field(None, description="mean of the weights, which is validated and kept")

    @model_validator(mode="after")
    def _one_of_each(self) -> "OptimizerConfig":
        if self.ema is not None and self.swa is not None:
            raise ValueError("one of `ema` and `swa`, not both")
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError("one of `clip_norm` and `clip_value`, not both; clip_norm: null")
        return self


class EarlyStopping(Section):
    """Stop when the watched metric has not improved for `patience` validations."""

    patience: int = Field(3, ge=1)
    min_delta: float = Field(0.0, ge=0)


class Checkpoint(Section):
    """When the full state is saved, and how many are kept."""

    every: Interval = Interval(1, "epochs")
    keep: int = Field(2, ge=1)


_ONE_CLASS = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "calibration_error")
_TAGS = (
    "mean_average_precision",
    "micro_f1",
    "macro_f1",
    "micro_precision",
    "micro_recall",
    "exact_match",
    "log_loss",
    "calibration_error",
)
# task -> the figures that its validation gives, the default first
METRICS: dict[str, tuple[str, ...]] = {
    "text_classification": _ONE_CLASS,
    "image_classification": (*_ONE_CLASS, "top_5_accuracy"),
    "text_multilabel": _TAGS,
    "image_multilabel": _TAGS,
}


class TrainConfig(Section):
    """How long, in what batches, watched by what."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(
        32,
        ge=1,
        description="examples an optimizer step, over all devices; auto: 32, cut to fit",
        json_schema_extra={"type": ["integer", "string"], "pattern": "^auto$"},
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="rows that a device holds at once; auto: as many as fit in its memory"
    )
    steps_per_execution: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="steps between two looks from Python; auto: 1; above a cached prefix 10 or 50",
    )
    jit_compile: bool | Literal["auto"] = Field(
        "auto",
        description="XLA. auto: on a GPU or TPU with deterministic: false, if the model compiles",
    )
    cache_features: bool | Literal["auto"] = Field(
        "auto", description="store what frozen stages put out, where that pays"
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="in which it is stored"
    )
    soup: int = Field(
        0, ge=0, description="the best weights by validation, so many, are averaged greedily"
    )
    batch_norm: Literal["frozen", "train", "adapt"] = Field(
        "frozen",
        description="statistics of BatchNorm: kept, trained, or set anew and trained",
    )
    batch_norm_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the old statistics that a step keeps; default: the layers' own (of "
        "keras: 0.99, too slow for a few hundred steps)",
    )
    remat: bool | list[str] = Field(
        False, description="stages that compute their activations again instead of keeping them"
    )
    deterministic: bool = Field(True, description="bit-identical repetition on one device")
    skip_non_finite: int = Field(
        0, ge=0, description="batches whose loss is not finite may be left out, this many at most"
    )
    profile: tuple[int, int] | None = Field(
        None, description="first and last step of a TensorBoard profile in WORKDIR/profile"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    buckets: int = Field(6, ge=1, le=32, description="how many different batch lengths at most")
    metric: str = Field(
        "accuracy",
        description="of the validation split: chooses `best/` and stops early; default of tagging: "
        "mean_average_precision",
    )
    validate_every: Duration = Duration(1, "epochs")
    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpoint = Checkpoint()
    tensorboard: bool = Field(False, description="writes WORKDIR/tensorboard (extra: tensorboard)")

    @model_validator(mode="before")
    @classmethod
    def _auto_batch(cls, value: Any) -> Any:
        """`batch_size: auto` stands for the default batch, cut into pieces that fit."""
        if isinstance(value, dict) and value.get("batch_size") == "auto":
            value = {k: v for k, v in value.items() if k != "batch_size"}
            return {**value, "micro_batch": value.get("micro_batch") or "auto"}
        return value

    @model_validator(mode="after")
    def _momentum_of_what_moves(self) -> "TrainConfig":
        if self.batch_norm_momentum is not None and self.batch_norm == "frozen":
            raise ValueError("`batch_norm_momentum` does nothing where batch_norm is frozen")
        return self

    @field_validator("profile")
    @classmethod
    def _in_order(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError("must be two steps in order, from 1 on")
        return value

    @field_validator("metric")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        value = value.removeprefix("validation/")
        names = dict.fromkeys(name for own in METRICS.values() for name in own)
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value


class DistributeConfig(Section):
    """Devices and precision."""

    strategy: Literal["auto", "one_device", "mirrored", "multi_worker", "tpu"] = Field(
        "auto",
        description="auto: several workers where TF_CONFIG names them, else a TPU, else all GPUs, "
        "else the CPU",
    )
    devices: list[str] | None = Field(
        None, description="e.g. ['GPU:1'] for one_device, ['GPU:0', 'GPU:1'] for mirrored"
    )
    tpu: str | None = Field(None, description="tpu only: its name or address; default: this host's")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"

    @model_validator(mode="after")
    def _devices(self) -> "DistributeConfig":
        if self.devices is not None:
            if self.strategy not in ("one_device", "mirrored"):
                raise ValueError(
                    "`devices` must be one device, with strategy: one_device, or several, with "
                    "strategy: mirrored"
                )
            if not self.devices or len(set(self.devices)) < len(self.devices):
                raise ValueError(f"`devices` must be different devices. Received: {self.devices}")
            if self.strategy == "one_device" and len(self.devices) != 1:
                raise ValueError("`devices` must be one device, with strategy: one_device")
        if self.tpu is not None and self.strategy != "tpu":
            raise ValueError("`tpu` is for strategy: tpu only")
        if self.strategy == "tpu" and self.precision == "mixed_float16":
            raise ValueError("`precision` must be float32 or mixed_bfloat16 on a TPU")
        return self


class EvaluateConfig(Section):
    """How the final figures are made."""

    batch_size: int = Field(64, ge=1)
    bootstrap: int = Field(1000, ge=0, description="resamples for the intervals; 0: none")
    confidence: float = Field(0.95, gt=0, lt=1)
    baselines: bool = Field(True, description="a majority and a TF-IDF baseline beside the model")
    worst: int = Field(20, ge=0, description="most wrong examples listed")
    test_time_augmentation: Literal["none", "mirrored"] = Field(
        "none",
        description="mirrored: probabilities are averaged over an image and its mirror image",
    )


class ExportConfig(Section):
    """The SavedModel."""

    enabled: bool = True
    verify_rows: int = Field(64, ge=32, description="rows compared with the live model")
    weight_dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32", description="of the stored weights; the loss of accuracy is measured and logged"
    )
    skip_padding: bool = Field(
        True,
        description="encoders of texts compute the real tokens alone; false: for what compiles the "
        "graph (XLA, TensorRT), which takes no shapes that follow from the values",
    )
    warmup: bool = Field(
        True, description="write warm-up requests for TF Serving, which hold training rows"
    )
