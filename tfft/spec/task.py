"""The base class of tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from tfft.spec.backbone import Backbone, StoredHead
from tfft.spec.sections import Details
from tfft.utils.errors import UserError

if TYPE_CHECKING:  # importing them at run time would load TensorFlow
    import keras
    import numpy as np
    import tensorflow as tf

    from tfft.config import TaskSection
    from tfft.utils.ragged import Ragged


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
