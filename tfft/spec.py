"""The contracts between the rooms, as small frozen dataclasses. Loads no TensorFlow.

Rooms on one level do not import each other; what they hand to one another is defined here.
Shapes: B rows, T tokens, H and W pixels, D features, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # only names for the reader: importing them would load TensorFlow
    import keras
    import numpy as np
    import tensorflow as tf

    from tfft.evaluation import metrics


@dataclass(frozen=True)
class Stage:
    """A part of the model that is frozen, trained or scaled as one.

    `pattern` is a regular expression, matched from the start of a variable's path.
    """

    name: str
    pattern: str


@dataclass(frozen=True)
class Rule:
    """Decides the variables it matches: whether they move, and how fast.

    `match` is a stage's name, a glob over variable paths, or `re:` and a regular expression.
    """

    match: str
    trainable: bool
    learning_rate: float = 1.0
    origin: str = "mask"


@dataclass(frozen=True)
class StoredHead:
    """The classification head that a checkpoint carries.

    `weights` maps the variable paths of tfft's head to arrays; `labels` are in output order.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class HeadStyle:
    """How the authors of a checkpoint's family read one vector off its features.

    `pooling` is `pooled`, `first` or `mean`; `activation` names that of a dense layer between
    the vector and the logits, or is None where there is none.
    """

    pooling: str
    activation: str | None = None


@dataclass(frozen=True)
class ImageSpec:
    """The pictures that a backbone reads.

    Attributes:
        size: height and width in pixels.
        resize: how a picture of another shape gets there: `crop` (the shorter side is resized and
            the middle is kept), `stretch`, or `pad` (the longer side is resized, the rest black).
        interpolation: `bilinear`, `bicubic` or `nearest`; when it gets smaller, with antialiasing.
        crop_fraction: with `crop`, the share of the resized shorter side that the middle is; with
            `stretch`, of both sides.
    """

    size: tuple[int, int]
    resize: str = "crop"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0


@dataclass(frozen=True)
class Backbone:
    """A pretrained Keras model and what the rest of tfft must know of it.

    Attributes:
        model: of texts, takes `{token_ids, padding_mask, segment_ids}`, each int32 [B, T]; of
            pictures, `{image}`, float32 [B, H, W, 3] from 0 to 255, RGB: what its authors scaled
            and centred is done inside. Returns the features by name.
        stages: bottom to top; every variable belongs to exactly one.
        features: name -> width: `pooled` [B, D], `sequence` [B, T, D], `map` [B, h, w, D].
        head_style: what the checkpoint's family does before its logits.
        fingerprint: of the pretrained weights and the architecture.
        description: plain data that rebuilds the architecture (`backbones.rebuild`).
        head: the classification head stored in the checkpoint, where there is one.
        max_length: tokens that it has positions for, None where there is no such bound.
        image_spec: what images it reads; None where it reads text.
        tokenizer: the description of its tokenizer, where that comes with its graph (`hub:`).
    """

    model: "keras.Model"
    stages: tuple[Stage, ...]
    features: Mapping[str, int]
    head_style: HeadStyle
    fingerprint: str
    description: Mapping[str, Any]
    head: StoredHead | None = None
    max_length: int | None = None
    image_spec: ImageSpec | None = None
    tokenizer: str | None = None

    @property
    def modality(self) -> str:
        """`text` or `image`."""
        return "text" if self.image_spec is None else "image"


@dataclass(frozen=True)
class Details:
    """What is known of a split beyond the headline figures; N rows, C classes.

    Attributes:
        confusion: None where a row may have several classes.
        by_class: metrics of each class, [C], by name.
        reliability: count, confidence and accuracy in bins of confidence.
        losses: of each row, [N].
        wrong: whether a row's answer is not what is true, bool [N].
        describe: (row, labels) -> `label`, `predicted`, `confidence` and the class that is shown
            (`about`).
    """

    confusion: "metrics.Confusion | None"
    by_class: Mapping[str, "np.ndarray"]
    reliability: Mapping[str, "np.ndarray"]
    losses: "np.ndarray"
    wrong: "np.ndarray"
    describe: Callable[[int, Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A kind of prediction: head, loss, figures and decoding.

    Truth is class ids [N]; where rows may have several classes, 0 or 1, [N, C]. Thresholds are of
    the probability from which a class is chosen, [C]; None where one class is, the most probable.

    Attributes:
        name: as in the YAML.
        modality: `text` or `image`: what a row is.
        columns: that it may read, in order.
        head: (backbone, TaskConfig, labels) -> (features by name, padding mask [B, T] or None) ->
            logits; its variables have paths below `head/`.
        loss: (TaskConfig) -> keras loss over (labels, logits), one value a row.
        sample_weights: (TaskConfig, labels, truth of the training rows) -> a weight for each
            class, or None.
        probabilities: (logits [N, C]) -> the same in float64 as probabilities.
        to_logits: back again, float32.
        metrics: (logits [N, C], truth, thresholds) -> metrics by name.
        bootstrap: (logits, truth, draws, seed, thresholds) -> metrics by name, each [draws]:
            bootstrap.
        details: (logits, truth, thresholds) -> `Details`.
        decode: in the graph, (logits [B, C], labels, thresholds) -> the served outputs by name.
        fit_thresholds: (logits, truth) -> thresholds; None where there are none.
        multi_label: whether a row may have several classes, or none.
    """

    name: str
    modality: str
    columns: tuple[str, ...]
    head: Callable[..., Callable[..., "keras.KerasTensor"]]
    loss: Callable[..., "keras.losses.Loss"]
    sample_weights: Callable[..., "np.ndarray | None"]
    probabilities: Callable[["np.ndarray"], "np.ndarray"]
    to_logits: Callable[["np.ndarray"], "np.ndarray"]
    metrics: Callable[..., dict[str, float]]
    bootstrap: Callable[..., dict[str, "np.ndarray"]]
    details: Callable[..., Details]
    decode: Callable[..., dict[str, "tf.Tensor"]]
    fit_thresholds: Callable[["np.ndarray", "np.ndarray"], "np.ndarray"] | None = None
    multi_label: bool = False


@dataclass(frozen=True)
class Phase:
    """A part of the training with a mask of its own.

    Attributes:
        rules: first match first.
        start: a `config.Duration` from the start of the training; None: its start.
        learning_rate: the peak rate, None for the optimizer's.
        restart_schedule: whether the schedule starts again here, and ends where the next such phase begins.
    """

    rules: tuple[Rule, ...]
    start: Any = None
    learning_rate: float | None = None
    restart_schedule: bool = False


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning.

    Attributes:
        name: as in the YAML.
        apply: (model, its stages, the head last, the method's section) -> the phases in order.
            It may attach layers and change weights first.
        identity: whether the model's output is at first what it was before `apply`.
        positions: (the method's section) -> positions that it takes before the text.
    """

    name: str
    apply: Callable[["keras.Model", tuple[Stage, ...], Any], tuple[Phase, ...]]
    identity: bool = True
    positions: Callable[[Any], int] = lambda _: 0


@dataclass(frozen=True)
class Mask:
    """The audited decision over every variable of a model.

    Attributes:
        entries: one for each variable, in the model's order.
        learning_rates: variable path -> factor, for those that move at another rate than 1.
    """

    entries: tuple["MaskEntry", ...]
    learning_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskEntry:
    """What was decided for one variable, and by which rule."""

    path: str
    stage: str
    size: int
    trainable: bool
    learning_rate: float
    rule: Rule
