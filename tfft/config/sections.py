"""The sections model, mask, optimizer, train, distribute, evaluate and export."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tfft.config.base import Section
from tfft.config.durations import Duration, Interval
from tfft.config.regularization import SurgeryConfig
from tfft.config.tasks import TASK_SECTIONS
from tfft.utils.errors import nearest

# Provider of a backbone -> keys of the section `model` that it supports.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "hf": ("revision", "weights", "image_size", "dropout", "head", "surgery.drop"),
    "hub": ("image_size", "scaling", "stages", "tokenizer"),
    "keras": ("weights", "image_size"),
    "kerashub": ("image_size", "scaling"),
    "timm": ("revision", "image_size", "head"),
}


class BackboneConfig(Section):
    """A pretrained backbone."""

    backbone: str = Field(
        description="hf:REPO_OR_FOLDER, hub:HANDLE_OR_FOLDER (a SavedModel), keras:NAME (a model "
        "of keras.applications), kerashub:PRESET_OR_FOLDER or timm:REPO_OR_FOLDER"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    weights: str | None = Field(
        None,
        description="a weight file instead of the checkpoint's; for keras: `imagenet` (the "
        "default), `none`, or a file",
    )
    image_size: Annotated[int, Field(ge=16, le=4096)] | None = Field(
        None, description="height and width of images; default: the size of the pretraining"
    )
    scaling: Literal["unit", "tf", "torch", "caffe", "none"] | None = Field(
        None,
        description="pixels that a hub: SavedModel takes: unit, 0 to 1 (the default, the "
        "convention of TF Hub); tf, -1 to 1; torch and caffe, normalized by ImageNet's mean; none, "
        "0 to 255. For kerashub: replaces the scaling of the preset",
    )
    stages: list[str] | None = Field(
        None,
        description="for hub: regular expressions over variable names, one a stage, bottom to top",
    )
    tokenizer: str | None = Field(
        None,
        description="for text encoders of hub: the preprocessing SavedModel with the vocabulary; "
        "default: the vocabulary in the assets of the encoder",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="replaces the dropout rates of the checkpoint"
    )

    @field_validator("backbone")
    @classmethod
    def _known_provider(cls, value: str) -> str:
        provider, _, name = value.partition(":")
        if provider not in PROVIDERS or not name:
            raise ValueError(f"must be PROVIDER:NAME with a provider of {', '.join(PROVIDERS)}")
        return value

    @model_validator(mode="after")
    def _only_for_its_provider(self) -> "BackboneConfig":
        provider = self.backbone.partition(":")[0]
        for name in (name for name, is_set in self._keys_of_providers().items() if is_set):
            if name not in PROVIDERS[provider]:
                providers = [f"{p}:" for p, names in PROVIDERS.items() if name in names]
                raise ValueError(f"`{name}` is for {' and '.join(providers)} backbones only")
        return self

    def _keys_of_providers(self) -> dict[str, bool]:
        """Return whether each key that only some providers support is set."""
        names = ("revision", "weights", "image_size", "scaling", "stages", "tokenizer", "dropout")
        return {name: getattr(self, name) is not None for name in names}


class ModelConfig(BackboneConfig):
    """The pretrained backbone, or `text` and `image` with a backbone each."""

    head: Literal["new", "checkpoint"] = Field(
        "new", description="checkpoint: keep the classification head and labels of the checkpoint"
    )
    surgery: SurgeryConfig = SurgeryConfig()

    @property
    def towers(self) -> dict[str, "ModelConfig"]:
        """The backbones by name; that of a model with one backbone has no name."""
        return {"": self}

    @property
    def title(self) -> str:
        """The backbone, for people."""
        return self.backbone

    def _keys_of_providers(self) -> dict[str, bool]:
        is_set = {"head": self.head != "new", "surgery.drop": bool(self.surgery.drop)}
        return super()._keys_of_providers() | is_set


class TowersConfig(Section):
    """Two pretrained backbones, whose vectors of a row are joined."""

    text: BackboneConfig
    image: BackboneConfig
    surgery: SurgeryConfig = SurgeryConfig()

    @property
    def towers(self) -> dict[str, ModelConfig]:
        """The backbones by name: `text` and `image`, each with the blocks that it drops."""
        parts = {"text": self.text, "image": self.image}
        return {
            name: ModelConfig(**part.model_dump(), surgery=SurgeryConfig(drop=self._dropped(name)))
            for name, part in parts.items()
        }

    @property
    def title(self) -> str:
        """Both backbones, for people."""
        return f"{self.text.backbone} + {self.image.backbone}"

    def _dropped(self, tower: str) -> list[str]:
        blocks = [name.partition("/") for name in self.surgery.drop]
        return [block for name, _, block in blocks if name == tower]

    @model_validator(mode="after")
    def _check_dropped(self) -> "TowersConfig":
        for name in self.surgery.drop:
            tower, _, block = name.partition("/")
            if tower not in ("text", "image") or not block:
                raise ValueError(
                    "`surgery.drop` must hold blocks of a backbone, such as text/block_0. "
                    f"Received: {name!r}"
                )
            provider = getattr(self, tower).backbone.partition(":")[0]
            if "surgery.drop" not in PROVIDERS[provider]:
                raise ValueError(f"`surgery.drop` is for hf: backbones only. Received: {name!r}")
        return self


MODEL_KINDS = ("single", "towers")


def _model_kind(value: Any) -> str:
    # By the keys, so that pydantic reports the mistakes of one class and not of both.
    keys = value if isinstance(value, Mapping) else getattr(value, "towers", ())
    return MODEL_KINDS[bool({"text", "image"} & set(keys))]


ModelSection = Annotated[
    Annotated[ModelConfig, Tag(MODEL_KINDS[0])] | Annotated[TowersConfig, Tag(MODEL_KINDS[1])],
    Discriminator(_model_kind),
]


class MaskRule(Section):
    """A rule over variables; the first match decides, and these rules precede the method's."""

    match: str = Field(description="a stage, a glob over variable paths, or re:REGEX")
    trainable: bool = True
    learning_rate: float = Field(1.0, gt=0, description="factor on the learning rate")

    @model_validator(mode="after")
    def _frozen_has_no_rate(self) -> "MaskRule":
        if not self.trainable and self.learning_rate != 1.0:
            raise ValueError("`learning_rate` has no effect with trainable: false")
        return self


class Swa(Section):
    """Stochastic weight averaging: the mean of the weights at regular steps."""

    start: Duration = Duration(75, "%")
    every: Duration = Field(
        Duration(1, "epochs"), description="time between two weights of the mean"
    )


class OptimizerConfig(Section):
    """The optimizer, its learning-rate schedule, weight decay, clipping and averages."""

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
    learning_rate: float = Field(5e-5, gt=0, description="peak of the schedule, after the warm-up")
    schedule: Literal["linear", "cosine", "polynomial", "slanted_triangular", "constant"] = "linear"
    warmup: Duration = Duration(10, "%")
    end_factor: float = Field(
        0.0, ge=0, le=1, description="last rate as a share of the peak; ULMFiT: 1/32"
    )
    power: float = Field(2.0, gt=0, description="for schedule: polynomial")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate for each stage below the head"
    )
    weight_decay: float = Field(
        0.01, ge=0, description="decoupled weight decay, not applied to biases and norms"
    )
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    options: dict[str, float | int | bool | str | list[str]] = Field(
        default_factory=dict, description="further arguments of the Keras optimizer"
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="largest norm of all gradients together; null: no limit"
    )
    clip_value: float | None = Field(
        None, gt=0, description="largest absolute value of an element of a gradient"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is validated and saved",
    )
    swa: Swa | None = Field(
        None, description="stochastic weight averaging; the mean is validated and saved"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "OptimizerConfig":
        if self.ema is not None and self.swa is not None:
            raise ValueError("only one of `ema` and `swa` can be set")
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError(
                "only one of `clip_norm` and `clip_value` can be set; set clip_norm: null"
            )
        return self


class EarlyStopping(Section):
    """Early stopping: stop when `train.metric` has not improved for `patience` validations."""

    patience: int = Field(3, ge=1, description="number of validations without improvement")
    min_delta: float = Field(0.0, ge=0, description="smallest change that counts as improvement")


class Checkpoint(Section):
    """Checkpoints of the full state of the training."""

    every: Interval = Field(
        Interval(1, "epochs"), description="time between two checkpoints, also '10 minutes'"
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints to keep")


class TrainConfig(Section):
    """The training: its length, batches, validation, checkpoints and speed."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(
        32,
        ge=1,
        description="examples of an optimizer step, over all devices; auto: 32, in micro-batches "
        "that fit in the memory",
        # `auto` is replaced before validation; editors must accept it.
        json_schema_extra={"type": ["integer", "string"], "pattern": "^auto$"},
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="largest number of rows on a device at once; auto: as many as fit in its "
        "memory",
    )
    steps_per_execution: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="steps of one call from Python; auto: 1, with cached features 10 or 50",
    )
    jit_compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile with XLA; auto: on a GPU or TPU with deterministic: false, if the "
        "model compiles",
    )
    cache_features: bool | Literal["auto"] = Field(
        "auto",
        description="compute the output of the frozen stages once and store it; auto: where that "
        "saves time",
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="dtype of the stored features"
    )
    soup: int = Field(
        0,
        ge=0,
        description="number of best weights, by validation, that are averaged greedily; 0: off",
    )
    batch_norm: Literal["frozen", "train", "adapt"] = Field(
        "frozen",
        description="statistics of BatchNorm: frozen, updated by the training, or computed from "
        "the training data first and then updated",
    )
    batch_norm_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the old statistics that a step keeps; default: as in the layers "
        "(Keras: 0.99, too slow for a few hundred steps)",
    )
    remat: bool | list[str] = Field(
        False,
        description="stages (true: all) that compute their activations again in the backward pass, "
        "to save memory",
    )
    deterministic: bool = Field(True, description="bit-identical repetition on one device")
    skip_non_finite: int = Field(
        0, ge=0, description="largest number of batches with a non-finite loss or gradient to skip"
    )
    profile: tuple[int, int] | None = Field(
        None, description="first and last step of a TensorBoard profile in WORKDIR/profile"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    buckets: int = Field(
        6, ge=1, le=32, description="largest number of different widths of text batches"
    )
    metric: str = Field(
        "accuracy",
        description="metric of the validation split that selects `best/` and stops early; default "
        "of multi-label tasks: mean_average_precision",
    )
    validate_every: Duration = Field(
        Duration(1, "epochs"), description="time between two validations"
    )
    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpoint = Checkpoint()
    tensorboard: bool = Field(
        False, description="write event files to WORKDIR/tensorboard (extra: tensorboard)"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_auto_batch(cls, value: Any) -> Any:
        """Replace `batch_size: auto` by the default batch in micro-batches that fit."""
        if isinstance(value, dict) and value.get("batch_size") == "auto":
            value = {k: v for k, v in value.items() if k != "batch_size"}
            return {**value, "micro_batch": value.get("micro_batch") or "auto"}
        return value

    @model_validator(mode="after")
    def _check_batch_norm(self) -> "TrainConfig":
        if self.batch_norm_momentum is not None and self.batch_norm == "frozen":
            raise ValueError("`batch_norm_momentum` has no effect with batch_norm: frozen")
        return self

    @field_validator("profile")
    @classmethod
    def _in_order(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError("must be two steps in order, counted from 1")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        """Check that a task has the metric; `Config` checks that its own task has it."""
        name = value.removeprefix("validation/")  # metrics.jsonl has the name with its split
        names = dict.fromkeys(n for section in TASK_SECTIONS.values() for n in section.metrics)
        if name not in names:
            hint = nearest(name, names)
            raise ValueError(f"must be one of {', '.join(names)}{hint if 'mean' in hint else ''}")
        return name


class DistributeConfig(Section):
    """The devices of the training and its precision."""

    strategy: Literal["auto", "one_device", "mirrored", "multi_worker", "tpu"] = Field(
        "auto",
        description="auto: multi_worker if TF_CONFIG names workers, else a TPU, else all GPUs, "
        "else the CPU",
    )
    devices: list[str] | None = Field(
        None, description="e.g. ['GPU:1'] for one_device, ['GPU:0', 'GPU:1'] for mirrored"
    )
    tpu: str | None = Field(
        None, description="tpu only: name or address of the TPU; default: the TPU of this host"
    )
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
    """The evaluation after the training."""

    batch_size: int = Field(64, ge=1)
    bootstrap: int = Field(
        1000, ge=0, description="number of bootstrap resamples for confidence intervals; 0: none"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the confidence intervals")
    baselines: bool = Field(
        True, description="also evaluate a constant answer and a linear model on simple features"
    )
    worst: int = Field(20, ge=0, description="number of most wrong examples to list")
    test_time_augmentation: Literal["none", "mirrored"] = Field(
        "none",
        description="mirrored: average the probabilities of an image and its mirror image",
    )


class ExportConfig(Section):
    """The export of a SavedModel for TF Serving."""

    enabled: bool = True
    verify_rows: int = Field(
        64, ge=32, description="number of rows on which the export is compared with the live model"
    )
    weight_dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32",
        description="dtype of the stored weights; the change of the metrics is measured and logged",
    )
    skip_padding: bool = Field(
        True,
        description="text encoders compute real tokens alone; set to false for compilers of the "
        "graph (XLA, TensorRT), which need shapes that do not depend on values",
    )
    warmup: bool = Field(
        True, description="write warm-up requests for TF Serving, which hold training rows"
    )
