"""Section `task`: the tasks, each with what it reads, its metrics and its settings."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from tfft.config.base import Section
from tfft.config.data import DataConfig

Direction = Literal["max", "min"]

_ONE_CLASS: Mapping[str, Direction] = {
    "accuracy": "max",
    "macro_f1": "max",
    "weighted_f1": "max",
    "log_loss": "min",
    "calibration_error": "min",
}
_MULTI_LABEL: Mapping[str, Direction] = {
    "mean_average_precision": "max",
    "micro_f1": "max",
    "macro_f1": "max",
    "micro_precision": "max",
    "micro_recall": "max",
    "exact_match": "max",
    "log_loss": "min",
    "calibration_error": "min",
}
_IMAGE_ONE_CLASS: Mapping[str, Direction] = {**_ONE_CLASS, "top_5_accuracy": "max"}
_NUMBERS: Mapping[str, Direction] = {
    # R2 first: unlike a correlation it sees a shift, unlike the errors it has no unit.
    "r2": "max",
    "pearson": "max",
    "spearman": "max",
    "rmse": "min",
    "mae": "min",
}
_ENTITIES: Mapping[str, Direction] = {
    "f1": "max",
    "precision": "max",
    "recall": "max",
    "macro_f1": "max",
    "weighted_f1": "max",
    "token_accuracy": "max",
}
_ANSWERS: Mapping[str, Direction] = {"f1": "max", "exact_match": "max"}
_CLASS_OUTPUTS = {"label": "string", "probabilities": "float32"}
_LABEL_OUTPUTS = {**_CLASS_OUTPUTS, "chosen": "bool"}
# Config keys that only some tasks support; a task lists its own in `supports`.
OPTIONAL_KEYS = (
    "augmentation",
    "data.image",
    "data.labels",
    "data.text_pair",
    "evaluate.test_time_augmentation",
    "regularization.distillation",
    "regularization.r_drop",
)
# Those that change images: they may be set wherever an image is read.
IMAGE_KEYS = frozenset({"augmentation", "evaluate.test_time_augmentation"})
_TEXT = frozenset({"data.image", "data.labels", "data.text_pair"})
_IMAGE = frozenset({"data.image", "data.labels"}) | IMAGE_KEYS
_DISTRIBUTIONS = frozenset({"regularization.distillation", "regularization.r_drop"})


Pooling = Literal["auto", "pooled", "first", "mean"]
POOLING = Field(
    "auto",
    description="which vector of the features the head reads; auto: as in the checkpoint (its "
    "pooler, else the first token)",
)
MOST_ENTITIES = 1024  # in the answer to a row
MOST_WINDOWS = 1024  # of a row
DOC_STRIDE = Field(
    "auto",
    description="tokens that neighbouring windows of a long text share; auto: a quarter of a "
    "window, at most 128",
)
MAX_WINDOWS = Field(
    32,
    ge=1,
    le=MOST_WINDOWS,
    description="windows that a text is divided into at most; what follows them is not read",
)
DROPOUT = Field(0.1, ge=0, lt=1, description="dropout rate before the logits")


DocStride = Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]


class TaskSection(Section):
    """What a task reads, measures and supports.

    Attributes:
        columns: columns of `data` that the task may read, besides the targets; a row has those
            that are set.
        targets: kind of targets: `class`, `labels`, `numbers`, `tags` or `answers` (`data.kinds`).
        metrics: metrics of the validation, and whether more or less is better; the default first.
        outputs: names of the outputs for a row -> their dtypes.
        numbers: fitted values that are one number each; others are one for each label.
        size: which of them is the number of outputs of a row; None: there is one for each label.
        supports: those of OPTIONAL_KEYS that may be set.
        problem_type: `problem_type` in the config of a Hugging Face checkpoint; None: it has none.
    """

    columns: ClassVar[tuple[str, ...]]
    targets: ClassVar[Literal["class", "labels", "numbers", "tags", "answers"]]
    metrics: ClassVar[Mapping[str, Direction]]
    outputs: ClassVar[Mapping[str, str]]
    numbers: ClassVar[tuple[str, ...]] = ()
    size: ClassVar[str | None] = None
    supports: ClassVar[frozenset[str]]
    problem_type: ClassVar[str | None]

    name: str

    @classmethod
    def task_name(cls) -> str:
        """Return `task.name` in the YAML."""
        return str(cls.model_fields["name"].default)

    def columns_in(self, data: DataConfig) -> tuple[str, ...]:
        """Return those of `columns` that a section `data` sets, in order."""
        return tuple(name for name in self.columns if getattr(data, name) is not None)


class _Classification(TaskSection):
    pooling: Pooling = POOLING
    dropout: float = DROPOUT
    loss: Literal["cross_entropy", "focal", "mse", "smooth_l1", "huber"] = Field(
        "cross_entropy", description="mse, smooth_l1 and huber are computed on the probabilities"
    )
    focal_gamma: float = Field(2.0, ge=0, description="for loss: focal")
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _smooths_cross_entropy(self) -> "_Classification":
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError("`label_smoothing` is for loss: cross_entropy only")
        return self


class _OneClass(_Classification):
    targets = "class"
    metrics = _ONE_CLASS
    outputs = _CLASS_OUTPUTS
    problem_type = "single_label_classification"

    delta: float = Field(
        0.5, gt=0, description="error at which smooth_l1 and huber turn from quadratic to linear"
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="balanced: rows / (classes * rows of the class); or a weight for each class "
        "name",
    )


class _MultiLabel(_Classification):
    targets = "labels"
    metrics = _MULTI_LABEL
    outputs = _LABEL_OUTPUTS
    problem_type = "multi_label_classification"

    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy",
        description="binary cross-entropy, averaged over the labels; focal: for rare labels",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_class_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and "class_weights" in value:
            raise ValueError(
                "`class_weights` is for one class a row; for rare labels use loss: focal"
            )
        return value


class TextClassification(_OneClass):
    """A text or a pair of texts, perhaps with an image, has one class."""

    columns = ("text", "text_pair", "image")
    supports = _TEXT | _DISTRIBUTIONS

    name: Literal["text_classification"] = "text_classification"


class ImageClassification(_OneClass):
    """An image has one class."""

    columns = ("image",)
    metrics = _IMAGE_ONE_CLASS
    supports = _IMAGE | _DISTRIBUTIONS

    name: Literal["image_classification"] = "image_classification"


class TextMultilabel(_MultiLabel):
    """A text or a pair of texts, perhaps with an image, has any number of labels."""

    columns = ("text", "text_pair", "image")
    supports = _TEXT

    name: Literal["text_multilabel"] = "text_multilabel"


class ImageMultilabel(_MultiLabel):
    """An image has any number of labels."""

    columns = ("image",)
    supports = _IMAGE

    name: Literal["image_multilabel"] = "image_multilabel"


class TextRegression(TaskSection):
    """A text or a pair of texts, perhaps with an image, has a number, or several."""

    columns = ("text", "text_pair", "image")
    targets = "numbers"
    metrics = _NUMBERS
    outputs: ClassVar = {"values": "float32"}
    supports = frozenset({"data.image", "data.text_pair"})
    problem_type = "regression"

    name: Literal["text_regression"] = "text_regression"
    pooling: Pooling = POOLING
    dropout: float = DROPOUT
    loss: Literal["mse", "mae", "huber"] = Field(
        "mse", description="of the standardised numbers, where `standardize` is on"
    )
    delta: float = Field(
        1.0, gt=0, description="error at which huber turns from quadratic to linear"
    )
    standardize: bool = Field(
        True,
        description="learn the numbers less their mean, divided by their standard deviation; the "
        "model answers in the unit of the data either way. Not with a checkpoint's head",
    )


class TokenClassification(TaskSection):
    """The words of a text have tags: entities, each with a type."""

    columns = ("text",)
    targets = "tags"
    metrics = _ENTITIES
    outputs: ClassVar = {
        "entity": "string",
        "type": "string",
        "start": "int32",
        "end": "int32",
        "start_byte": "int32",
        "end_byte": "int32",
        "score": "float32",
        "count": "int32",
    }
    numbers = ("max_entities",)
    size = "max_entities"
    supports = frozenset({"data.labels"})
    problem_type = None

    name: Literal["token_classification"] = "token_classification"
    dropout: float = DROPOUT
    label: Literal["first", "all"] = Field(
        "first",
        description="tokens of a word in the loss: the first, or all. The first one decides the "
        "answer either way",
    )
    max_entities: Annotated[int, Field(ge=1, le=MOST_ENTITIES)] | Literal["auto"] = Field(
        "auto",
        description="entities in the answer to a row, at most; auto: twice as many as a training "
        "row has, at least 16",
    )
    doc_stride: DocStride = DOC_STRIDE
    max_windows: int = MAX_WINDOWS


class QuestionAnswering(TaskSection):
    """A passage of a context answers a question, or none does."""

    columns = ("question", "context")
    targets = "answers"
    metrics = _ANSWERS
    outputs: ClassVar = {
        "answer": "string",
        "start": "int32",
        "end": "int32",
        "start_byte": "int32",
        "end_byte": "int32",
        "score": "float32",
    }
    numbers = ("max_answer_length", "n_best", "null_threshold")
    supports = frozenset()
    problem_type = None

    name: Literal["question_answering"] = "question_answering"
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout rate before the logits; heads of transformers have none",
    )
    max_question_length: int = Field(
        64, ge=1, le=4096, description="tokens of a question; longer ones are cut"
    )
    max_answer_length: int = Field(30, ge=1, le=4096, description="tokens of an answer")
    n_best: int = Field(
        20, ge=1, le=100, description="starts and ends of a window from which answers are formed"
    )
    doc_stride: DocStride = DOC_STRIDE
    max_windows: int = MAX_WINDOWS


TaskConfig = Annotated[
    TextClassification
    | ImageClassification
    | TextMultilabel
    | ImageMultilabel
    | TextRegression
    | TokenClassification
    | QuestionAnswering,
    Field(discriminator="name"),
]
# `task.name` -> its section; the first is the default.
TASK_SECTIONS: Mapping[str, type[TaskSection]] = {
    section.task_name(): section for section in get_args(get_args(TaskConfig)[0])
}
