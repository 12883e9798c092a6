"""The contracts between the packages, as small frozen dataclasses. Loads no TensorFlow.

Packages on one level do not import each other; the types that they exchange are defined here.
Shapes: N or B rows, T tokens, H and W pixels, D features, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing them at run time would load TensorFlow
    import keras
    import numpy as np
    import tensorflow as tf

    from tfft.config import TaskSection
    from tfft.evaluation import metrics


@dataclass(frozen=True)
class Stage:
    """A part of the model that is frozen, trained or scaled as a unit.

    Attributes:
        name: such as `embeddings`, `block_0` or `head`.
        pattern: regular expression, matched from the start of a variable's path.
    """

    name: str
    pattern: str


@dataclass(frozen=True)
class Rule:
    """A rule that decides whether the variables that it matches are trainable, and their rate.

    Attributes:
        match: a stage's name, a glob over variable paths, or `re:` and a regular expression.
        trainable: whether they are trainable.
        learning_rate: factor on the learning rate.
        origin: where the rule comes from, for the mask table.
    """

    match: str
    trainable: bool
    learning_rate: float = 1.0
    origin: str = "mask"


@dataclass(frozen=True)
class StoredHead:
    """The classification head that a checkpoint holds.

    Attributes:
        labels: class names in the order of the outputs.
        weights: variable paths of tfft's head -> arrays.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class HeadStyle:
    """How a model family's classifier computes its logits from the features.

    Attributes:
        pooling: `pooled`, `first` or `mean`: which vector of the features it reads.
        activation: activation of a dense layer between the vector and the logits; None: no such
            layer.
    """

    pooling: str
    activation: str | None = None


@dataclass(frozen=True)
class ImageSpec:
    """The images that a backbone reads.

    Attributes:
        size: height and width in pixels.
        resize: how an image of another shape gets this size: `crop` (resize the shorter side and
            keep the centre), `stretch`, or `pad` (resize the longer side, the rest is black).
        interpolation: `bilinear`, `bicubic` or `nearest`; with antialiasing when an image shrinks.
        crop_fraction: with `crop`, size of the centre as a share of the resized shorter side; with
            `stretch`, as a share of both sides.
    """

    size: tuple[int, int]
    resize: str = "crop"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0


@dataclass(frozen=True)
class Backbone:
    """A pretrained Keras model and its description.

    Attributes:
        model: for text, takes `{token_ids, padding_mask, segment_ids}`, each int32 [B, T]; for
            images, `{image}`, float32 [B, H, W, 3] from 0 to 255, RGB, and scales it inside.
            Returns the features by name.
        stages: bottom to top; each variable belongs to exactly one.
        features: name -> D, the width: `pooled` [B, D], `sequence` [B, T, D], `map` [B, h, w, D].
        head_style: how the model family's classifier reads the features.
        fingerprint: digest of the pretrained weights and the architecture.
        description: plain data from which `backbones.rebuild` builds the architecture.
        head: the classification head stored in the checkpoint; None without one.
        max_length: number of positions; None: no limit.
        image_spec: the images that it reads; None for text.
        tokenizer: description of the tokenizer that its graph contains (`hub:`); None without one.
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
        """Kind of input: `text` or `image`."""
        return "text" if self.image_spec is None else "image"


@dataclass(frozen=True)
class Details:
    """Evaluation results of a split beyond its metrics; N rows, C classes.

    Attributes:
        confusion: confusion matrix; None in multi-label tasks.
        by_class: name of a metric -> its values for each class, [C].
        reliability: `count`, `confidence` and `accuracy` in bins of confidence.
        losses: loss of each row, [N].
        wrong: whether the prediction of a row is wrong, bool [N].
        describe: (row, labels) -> `label`, `predicted`, `confidence`, and `about`, the class that
            the report explains.
    """

    confusion: "metrics.Confusion | None"
    by_class: Mapping[str, "np.ndarray"]
    reliability: Mapping[str, "np.ndarray"]
    losses: "np.ndarray"
    wrong: "np.ndarray"
    describe: Callable[[int, Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A kind of prediction: head, loss, metrics and decoding.

    The truth is class ids [N]; in multi-label tasks 0 or 1, [N, C]. Thresholds, [C], are the
    probabilities from which a class is predicted; None in tasks that predict the most probable one.

    Attributes:
        section: the class of its section in the YAML: what it reads, measures and supports.
        head: (backbone, section `task`, labels) -> (features by name, padding mask [B, T] or
            None) -> logits; its variables have paths below `head/`.
        loss: (section `task`) -> Keras loss over (labels, logits), one value a row.
        sample_weights: (section `task`, labels, truth of the training rows) -> a weight for each
            class, or None.
        activation: Keras' activation from logits to probabilities.
        probabilities: (logits [N, C]) -> probabilities, float64 [N, C].
        to_logits: (probabilities [N, C]) -> logits, float32 [N, C].
        metrics: (logits [N, C], truth, thresholds) -> metrics by name.
        bootstrap: (logits, truth, draws, seed, thresholds) -> metrics of resampled rows by name,
            each [draws].
        details: (logits, truth, thresholds) -> `Details`.
        decode: (logits [B, C], labels, thresholds) -> outputs by name, [B, ...] each; TensorFlow
            ops. Python and the served graph call it alike.
        answer: (outputs of a row by name, labels) -> the row's answer as plain data.
        margin: (probabilities [N, C], thresholds) -> how much a probability of each row would
            have to change for another answer, [N].
        summary: what `decode` returns, for the README of an export.
        fit_thresholds: (logits, truth) -> thresholds; None in tasks without thresholds.
    """

    section: "type[TaskSection]"
    head: Callable[..., Callable[..., "keras.KerasTensor"]]
    loss: Callable[..., "keras.losses.Loss"]
    sample_weights: Callable[..., "np.ndarray | None"]
    activation: str
    probabilities: Callable[["np.ndarray"], "np.ndarray"]
    to_logits: Callable[["np.ndarray"], "np.ndarray"]
    metrics: Callable[..., dict[str, float]]
    bootstrap: Callable[..., dict[str, "np.ndarray"]]
    details: Callable[..., Details]
    decode: Callable[..., dict[str, "tf.Tensor"]]
    answer: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    margin: Callable[["np.ndarray", "np.ndarray | None"], "np.ndarray"]
    summary: str
    fit_thresholds: Callable[["np.ndarray", "np.ndarray"], "np.ndarray"] | None = None

    @property
    def name(self) -> str:
        """`task.name` in the YAML."""
        return self.section.task_name()


@dataclass(frozen=True)
class Phase:
    """A part of the training with a separate mask.

    Attributes:
        rules: the first one that matches a variable decides.
        start: a `config.Duration` from the start of the training; None: step 0.
        learning_rate: peak rate; None: `optimizer.learning_rate`.
        restart_schedule: whether the learning-rate schedule restarts here; it then lasts until the
            next such phase.
    """

    rules: tuple[Rule, ...]
    start: Any = None
    learning_rate: float | None = None
    restart_schedule: bool = False


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Attributes:
        name: `method.name` in the YAML.
        apply: (model, stages with the head last, section `method`) -> phases in order. It may
            inject layers and change weights.
        identity: whether `apply` leaves the model's output unchanged until the first step.
        positions: (section `method`) -> number of positions that it takes before the text.
    """

    name: str
    apply: Callable[["keras.Model", tuple[Stage, ...], Any], tuple[Phase, ...]]
    identity: bool = True
    positions: Callable[[Any], int] = lambda _: 0


@dataclass(frozen=True)
class Mask:
    """The audited decision which variables of a model are trainable.

    Attributes:
        entries: one for each variable, in the model's order.
        learning_rates: variable path -> factor on the learning rate, where it is not 1.
    """

    entries: tuple["MaskEntry", ...]
    learning_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskEntry:
    """The decision for one variable.

    Attributes:
        path: path of the variable.
        stage: name of its stage.
        size: number of its elements.
        trainable: whether it is trainable.
        learning_rate: factor on its learning rate.
        rule: the rule that decided.
    """

    path: str
    stage: str
    size: int
    trainable: bool
    learning_rate: float
    rule: Rule
