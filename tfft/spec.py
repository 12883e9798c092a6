"""The contracts between the packages: frozen dataclasses, and the base class of tasks.

Loads no TensorFlow. Packages on one level do not import each other; the types that they exchange
are defined here.
Shapes: N or B rows, T tokens, H and W pixels, D features, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from tfft.utils.errors import UserError

if TYPE_CHECKING:  # importing them at run time would load TensorFlow
    import keras
    import numpy as np
    import tensorflow as tf

    from tfft.config import TaskSection
    from tfft.utils.ragged import Ragged


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
    """The head that a checkpoint holds.

    Attributes:
        labels: class names in the order of the outputs.
        weights: variable paths of tfft's head -> arrays.
        kind: what it predicts: `rows`, or `tags` or `answers` by logits for each token.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, "np.ndarray"]
    kind: str = "rows"


@dataclass(frozen=True)
class HeadStyle:
    """How a model family's classifier computes its logits from the features.

    Attributes:
        pooling: `pooled`, `first` or `mean`: which vector of the features it reads; `tokens`: that
            of each token.
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
        head: the head stored in the checkpoint; None without one.
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
class Table:
    """A table of a report.

    Attributes:
        title: its heading.
        header: names of the columns; the first column names the rows.
        rows: the cells; a number is right-aligned.
        order: indices of the rows, the most noteworthy first; the model card shows the first ones.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    order: Sequence[int]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        title: its heading.
        names: names of the classes shown.
        counts: true classes down, predicted ones across, int [c, c].
        totals: rows of each true class, those predicted as a class not shown included, int [c].
    """

    title: str
    names: Sequence[str]
    counts: "np.ndarray"
    totals: "np.ndarray"


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        title: its heading.
        bins: `count`, `confidence` and `accuracy` in bins of confidence.
    """

    title: str
    bins: Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Scatter:
    """Predicted against true numbers.

    Attributes:
        title: its heading.
        true: [N].
        predicted: [N].
    """

    title: str
    true: "np.ndarray"
    predicted: "np.ndarray"


Section = Table | Matrix | Reliability | Scatter


@dataclass(frozen=True)
class Details:
    """Evaluation results of a split beyond its metrics; N rows.

    Attributes:
        sections: what a report shows, in order.
        losses: loss of each row, [N].
        wrong: whether the prediction of a row is wrong, bool [N].
        describe: row -> its target and prediction as named cells, such as `label`, `predicted` and
            `confidence`; and with images `about`, the class that the report explains.
    """

    sections: Sequence[Section]
    losses: "np.ndarray"
    wrong: "np.ndarray"
    describe: Callable[[int], dict[str, Any]]


# Targets or logits of N rows: an array [N, ...], or any number of entries for each row.
PerRow = Union["np.ndarray", "Ragged"]
# Values that are fitted on data and belong to the model, by name: thresholds, scales of targets.
Fitted = Mapping[str, "np.ndarray"]


class Task:
    """A kind of prediction: head, loss, metrics and decoding. A base class with defaults.

    A task computes logits [N, C] for N rows, C of them for each row, named by the labels: classes,
    or the columns of the targets. `targets` are what the task predicts, [N, ...]. A task of tokens
    reads windows, all of each row's in order, and computes logits [E, T, C] for them.

    It is evaluated on its `records`: what is kept of the logits of each row, or they themselves.

    Attributes:
        section: the class of its section in the YAML: what it reads, measures and supports.
        summary: what `decode` returns, for the README of an export.
        output: the output of `decode` that holds the numbers of a row, float32 [B, C], which every
            export format writes.
        unfitted: what is logged where a task with `fit` has no validation rows; None in tasks
            without `fit`.
        pipeline: `pipeline_tag` of the Hugging Face hub, for the model card.
        answers_with: what the model answers with, for the model card; `{count}` is the number of
            labels.
        limits: sentences of the model card on what the model cannot do.
        head_kind: kind of the checkpoint's head that it can begin with (`StoredHead.kind`).
        of_tokens: whether it computes logits for each token.
    """

    section: "type[TaskSection]"
    summary: str
    output: str
    unfitted: str | None = None
    pipeline: str
    answers_with: str
    limits: tuple[str, ...] = ()
    head_kind: str = "rows"
    of_tokens: bool = False

    @property
    def name(self) -> str:
        """`task.name` in the YAML."""
        return self.section.task_name()

    # --- training ---

    def head(
        self, backbone: Backbone, config: Any, labels: Sequence[str]
    ) -> "Callable[..., keras.KerasTensor]":
        """Return a function: features by name and padding mask [B, T] or None -> the logits.

        Its variables have paths below `head/`.
        """
        raise NotImplementedError

    def stored_head(self, head: StoredHead) -> StoredHead:
        """Return the head of a checkpoint as this task uses it.

        Raises:
            UserError: the head is of another kind of task.
        """
        if head.kind != self.head_kind:
            message = f"model.head: the checkpoint's head is for {head.kind}; task is {self.name}"
            raise UserError(f"{message}; use head: new")
        return head

    def loss(self, config: Any) -> "keras.losses.Loss":
        """Return the loss over (targets, logits); it gives one value per row, or per token."""
        raise NotImplementedError

    def row_weights(
        self, config: Any, labels: Sequence[str], targets: "np.ndarray"
    ) -> "np.ndarray | None":
        """Return the weight of each training row in the loss, [N]; None: all are 1."""
        return None

    def fit_targets(self, config: Any, targets: "PerRow", has_new_head: bool = True) -> Fitted:
        """Return what the model needs to know of the training targets.

        A head of a checkpoint, which is not new, answers in the unit of its own targets.
        """
        return {}

    def training_targets(self, config: Any, split: Any, fitted: Fitted) -> "PerRow":
        """Return the targets of a `data.Dataset` as the loss takes them.

        They are [N, ...], or `Ragged` with an entry for each token: -1 where it has no target.
        """
        return split.targets

    def folded_head(
        self, weights: "Mapping[str, np.ndarray]", fitted: Fitted
    ) -> "dict[str, np.ndarray]":
        """Return the head's weights by path with the fitted values in them.

        For files that hold weights alone, such as a checkpoint of Hugging Face.
        """
        return dict(weights)

    # --- evaluation ---

    def records(self, split: Any, outputs: int, fitted: Fitted) -> Any:
        """Return what collects the records of a `data.Dataset` (`evaluation.records.Records`)."""
        raise NotImplementedError

    def baselines(self, train: Any, split: Any, outputs: int) -> dict[str, Any]:
        """Return the records of answers that a model should beat, by name.

        Args:
            train: the `data.Dataset` to learn from.
            split: the one to predict.
            outputs: number of logits per row.
        """
        raise NotImplementedError

    def is_fitted(self, fitted: Fitted) -> bool:
        """Return whether `fit` has something to fit."""
        return self.unfitted is not None

    def fit(self, records: Any, targets: "PerRow", fitted: Fitted) -> Fitted:
        """Return `fitted` with what is fitted on validation rows, such as thresholds."""
        return fitted

    def metrics(self, records: Any, targets: "PerRow", fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics, by name."""
        raise NotImplementedError

    def bootstrap(
        self, records: Any, targets: "PerRow", draws: int, seed: int, fitted: Fitted
    ) -> "dict[str, np.ndarray]":
        """Compute the headline metrics of resampled rows, by name, each [draws]."""
        raise NotImplementedError

    def details(self, records: Any, split: Any, labels: Sequence[str], fitted: Fitted) -> Details:
        """Return what a report shows of the rows of a `data.Dataset`, and the loss of each."""
        raise NotImplementedError

    def average(self, logits: "Sequence[np.ndarray]") -> "np.ndarray":
        """Return the logits of the average answer of several passes over the same rows."""
        raise NotImplementedError

    # --- prediction ---

    def activate(self, logits: "np.ndarray", fitted: Fitted) -> "np.ndarray":
        """Compute `output` of logits on the host, float64 [N, C]."""
        raise NotImplementedError

    def activation(self, fitted: Fitted, **arguments: Any) -> "keras.layers.Layer":
        """Return a Keras layer that computes `output` of logits; `arguments` are the layer's."""
        raise NotImplementedError

    def decode(
        self, logits: "tf.Tensor", labels: Sequence[str], fitted: Fitted
    ) -> "dict[str, tf.Tensor]":
        """Return the outputs by name, [B, ...] each, as TensorFlow ops.

        Python and the served graph call it alike.
        """
        raise NotImplementedError

    def locate(
        self,
        outputs: "Mapping[str, tf.Tensor]",
        tokens: "Mapping[str, tf.Tensor]",
        labels: Sequence[str],
        fitted: Fitted,
    ) -> "dict[str, tf.Tensor]":
        """Return the answers to raw texts, such as spans, in place of the outputs of tokens.

        Args:
            outputs: what `decode` returned.
            tokens: where the tokens of the windows are in the texts (`GraphTokenizer.located`).
            labels: names of the outputs.
            fitted: the fitted values of the model.
        """
        return dict(outputs)

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return the outputs of one row as plain data."""
        raise NotImplementedError

    def unit(self, output: "np.ndarray", fitted: Fitted) -> "float | np.ndarray":
        """Return the unit in which differences of `output` [N, C] are measured, [C] or a number."""
        return 1.0

    def margin(
        self,
        outputs: "Mapping[str, np.ndarray]",
        fitted: Fitted,
        tokens: "Mapping[str, np.ndarray] | None" = None,
    ) -> "np.ndarray":
        """Return how much `output` of each row would have to change for another answer, [N].

        Args:
            outputs: what `decode` returned.
            fitted: the fitted values of the model.
            tokens: where the tokens are, for a task of tokens.
        """
        raise NotImplementedError

    def example_signatures(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the signatures of an export that take tf.Examples: `classify`, `regress`."""
        return ()


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
