"""Classification of the words of a text: named entities, fields of documents.

The network computes logits for each token. The first token of a word stands for the word; entities
are sequences of words with tags of one type (IOB2, `data.tags`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import tasks as task_sections
from tfft.data import Dataset, tags
from tfft.evaluation import baselines, entity_metrics, metrics
from tfft.evaluation.records import WordLogits
from tfft.spec import Backbone, Details, Fitted, Matrix, Section, StoredHead, Table, Task
from tfft.tasks import entities
from tfft.tasks.heads import token_head
from tfft.utils.errors import UserError
from tfft.utils.ragged import Ragged

FEWEST_ENTITIES = 16  # in the answer to a row, where `max_entities` is auto
MATRIX_TYPES = 60  # types in a confusion matrix; more are unreadable


class TokenCrossEntropy(keras.losses.Loss):
    """Cross-entropy of the tags of tokens, averaged over the tokens that have one."""

    def __init__(self, name: str = "loss"):
        # The weights of tokens are 0 or 1: their sum is the number of tokens with a target.
        super().__init__(name=name, reduction="mean_with_sample_weight", dtype="float32")

    def call(self, y_true, y_pred):
        """Compute the loss [B, T] of tag ids [B, T] and logits [B, T, C]."""
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        target = ops.one_hot(ops.cast(y_true, "int32"), ops.shape(y_pred)[-1])
        return -ops.sum(log_p * target, axis=-1)


class TokenClassification(Task):
    """Each word of a text has a tag; targets are tag ids of words, `Ragged`."""

    section = task_sections.TokenClassification
    summary = (
        "the first entities of a text, `count` in all: text, type, place in characters and bytes, "
        "score"
    )
    output = "probabilities"
    constant = "majority"
    features = "dictionary"
    pipeline = "token-classification"
    answers_with = "entities, each word with one of {count} tags"
    limits = (
        "Entities are sequences of whole words; a word belongs to one entity.",
        "It reads a text up to its largest number of windows; later entities are not found.",
    )
    head_kind = "tags"
    of_tokens = True

    def head(
        self, backbone: Backbone, config: Any, labels: Sequence[str]
    ) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
        """Return a function: features by name and padding mask (or None) -> logits [B, T, C]."""
        return token_head(config.dropout, len(labels))

    def stored_head(self, head: StoredHead) -> StoredHead:
        """Return the head with its outputs in the order of `tags.names`.

        Raises:
            UserError: the head classifies whole texts, or its labels are not tags of IOB2.
        """
        labels = head.labels
        names = tags.names(label[2:] for label in labels if label[1:2] == "-")
        if head.kind != self.head_kind or sorted(names) != sorted(labels) or len(names) < 3:
            raise UserError(
                "model.head: the checkpoint's head needs the labels O, and B- and I- of each type; "
                f"use head: new. Received: {', '.join(labels)[:100]}"
            )
        order = [labels.index(name) for name in names]
        weights = {path: value[..., order] for path, value in head.weights.items()}
        return replace(head, labels=tuple(names), weights=weights)

    def loss(self, config: Any) -> keras.losses.Loss:
        """Build the loss; it returns one value per token."""
        return TokenCrossEntropy()

    def fit_targets(self, config: Any, targets: Ragged, has_new_head: bool = True) -> Fitted:
        """Return `max_entities` [1], the number of entities that the answer to a row may have."""
        if config.max_entities != "auto":
            return {"max_entities": np.array([float(config.max_entities)])}
        begins = targets.values % 2 == 1
        most = int(np.bincount(targets.row_ids[begins], minlength=1).max())
        number = min(max(FEWEST_ENTITIES, 2 * most), task_sections.MOST_ENTITIES)
        return {"max_entities": np.array([float(number)])}

    def training_targets(self, config: Any, split: Dataset, fitted: Fitted) -> Ragged:
        """Return the tag id of each token, -1 where it has no target.

        The first token of a word has the tag of the word. With `label: all` the further ones have
        the tag that continues its entity.
        """
        of_tokens, targets = split.of_tokens("token_words"), split.targets
        rows, words = split.example_rows[of_tokens.row_ids], of_tokens.values
        values = np.full(len(words), -1, np.int32)
        has_word = words >= 0
        values[has_word] = targets.values[targets.starts[rows[has_word]] + words[has_word]]
        # Between the tokens of a word that two windows divide there are others without a word.
        known, rows_of_known = words[has_word], rows[has_word]
        follows = np.zeros(len(words), bool)
        follows[np.flatnonzero(has_word)[1:]] = (known[1:] == known[:-1]) & (
            rows_of_known[1:] == rows_of_known[:-1]
        )
        # B-x of a word is I-x, the next id, in its further tokens.
        values = np.where(follows, tags.inside(values), values).astype(np.int32)
        if config.label == "first":
            values[follows] = -1
        return of_tokens.with_values(values)

    def records(self, split: Dataset, outputs: int, fitted: Fitted) -> WordLogits:
        """Return what collects the logits of each word."""
        return WordLogits(split, outputs)

    def baselines(self, train: Dataset, split: Dataset, outputs: int) -> dict[str, Ragged]:
        """Return the logits of the most frequent tag and of a dictionary, by name."""
        return baselines.constant_and_linear(self, train, split, outputs)

    def metrics(self, logits: Ragged, targets: Ragged, fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics of entities."""
        return entity_metrics.headline(_counts(logits, targets))

    def bootstrap(
        self, logits: Ragged, targets: Ragged, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples of the rows, each [draws]."""
        return entity_metrics.bootstrap(_counts(logits, targets), draws, seed)

    def details(
        self, logits: Ragged, split: Dataset, labels: Sequence[str], fitted: Fitted
    ) -> Details:
        """Compute metrics and errors by type, confused types, and losses by row."""
        types = types_of(labels)
        gold, predicted = (
            entity_metrics.from_tag_ids(rows, len(types)) for rows in (split.targets, _tags(logits))
        )
        counts = entity_metrics.count(gold, predicted, types)
        errors = entity_metrics.errors(gold, predicted, len(types))
        p = metrics.softmax(logits.values)
        losses = -np.log(
            np.maximum(p[np.arange(len(p)), split.targets.values], np.finfo(np.float32).tiny)
        )
        by_row = np.bincount(split.targets.row_ids, weights=losses, minlength=len(split.targets))
        by_row /= np.maximum(split.targets.lengths, 1)
        wrong = (counts.hits != counts.gold).any(axis=1) | (counts.hits != counts.predicted).any(
            axis=1
        )
        predicted_tags = _tags(logits)

        def listed(position: int, ids: np.ndarray) -> str:
            spans = tags.spans([labels[i] for i in ids])
            texts = (f"{split.text_of(position, s.start, s.end)} ({s.type})" for s in spans)
            return ", ".join(texts) or "none"

        def describe(position: int) -> dict[str, Any]:
            return {
                "label": listed(position, split.targets[position]),
                "predicted": listed(position, predicted_tags[position]),
            }

        return Details(
            sections=(
                _type_table(types, entity_metrics.by_type(counts)),
                _error_table(types, errors),
                *_confusion(types, errors),
            ),
            losses=by_row,
            wrong=wrong,
            describe=describe,
        )

    def constant_logits(self, targets: Ragged, classes: int) -> np.ndarray:
        """Return logits of the frequencies of tags, [C]; the most frequent one is usually `O`."""
        counts = np.bincount(targets.values, minlength=classes)
        return np.log((counts + 1) / (counts.sum() + classes))

    def linear_logits(
        self, features: Ragged, targets: Ragged, new_features: Ragged, classes: int
    ) -> Ragged:
        """Return logits by how often each word has each tag in the training rows.

        A word that they lack is outside of entities.
        """
        counts: dict[str, np.ndarray] = {}
        for word, tag in zip(features.values, targets.values, strict=True):
            counts.setdefault(word, np.zeros(classes))[tag] += 1
        unknown = np.eye(1, classes)[0]
        words = [counts.get(word, unknown) for word in new_features.values]
        table = np.stack(words) if words else np.zeros((0, classes))
        return new_features.with_values(np.log(table + 1 / classes))

    def activate(self, logits: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Compute probabilities, float64 [B, T, C]."""
        tags_last = logits.reshape(-1, logits.shape[-1])
        return metrics.softmax(tags_last).reshape(logits.shape)

    def activation(self, fitted: Fitted, **arguments: Any) -> keras.layers.Layer:
        """Return a softmax layer."""
        return keras.layers.Activation("softmax", **arguments)

    def decode(
        self, logits: tf.Tensor, labels: Sequence[str], fitted: Fitted
    ) -> dict[str, tf.Tensor]:
        """Return `probabilities` of tags, float32 [B, T, C]."""
        return {"probabilities": tf.nn.softmax(tf.cast(logits, tf.float32))}

    def locate(
        self,
        outputs: Mapping[str, tf.Tensor],
        tokens: Mapping[str, tf.Tensor],
        labels: Sequence[str],
        fitted: Fitted,
    ) -> dict[str, tf.Tensor]:
        """Return the entities of raw texts; see `entities.decode`.

        The score of an entity is the mean probability of the tags of its words.
        """
        probabilities = outputs["probabilities"]
        of_windows = {
            "tag_ids": tf.argmax(probabilities, axis=-1, output_type=tf.int32),
            "scores": tf.reduce_max(probabilities, axis=-1),
            **{name: tokens[name] for name in ("first", "starts", "ends")},
        }
        return entities.decode(
            **entities.of_rows(of_windows, tokens),
            text=tokens["text"],
            types=types_of(labels),
            max_entities=int(fitted["max_entities"][0]),
        )

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return `{"entities": [{"text", "type", "start", "end", ..., "score"}, ...]}` of a row.

        `start` and `end` count characters, `start_byte` and `end_byte` bytes of UTF-8. Where the
        text has more entities than the answer may have, `count` says how many.
        """
        count, size = int(outputs["count"]), len(outputs["score"])
        listed = [
            {
                "text": outputs["entity"][i].decode("utf-8", "replace"),
                "type": outputs["type"][i].decode("utf-8", "replace"),
                **{
                    name: int(outputs[name][i])
                    for name in ("start", "end", "start_byte", "end_byte")
                },
                "score": float(outputs["score"][i]),
            }
            for i in range(min(count, size))
        ]
        return {"entities": listed, **({"count": count} if count > size else {})}

    def margin(
        self, outputs: Mapping[str, np.ndarray], fitted: Fitted, tokens: Any = None
    ) -> np.ndarray:
        """Return half the smallest lead of the most probable tag of a word, [B]."""
        second, first = np.moveaxis(np.sort(outputs["probabilities"], axis=-1)[..., -2:], -1, 0)
        lead = (first - second) / 2
        if tokens is None:
            return lead.min(axis=-1, initial=np.inf)
        of_windows = np.where(tokens["first"], lead, np.inf).min(axis=-1, initial=np.inf)
        of_rows = np.full(len(tokens["text"]), np.inf)
        np.minimum.at(of_rows, np.asarray(tokens["row"]), of_windows)
        return of_rows


def types_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the types of entities, from the names of the tags by id."""
    return tuple(label[2:] for label in labels[1::2])


def _tags(logits: Ragged) -> Ragged:
    """Return the most probable tag id of each word."""
    return logits.with_values(logits.values.argmax(axis=-1).astype(np.int32))


def _counts(logits: Ragged, targets: Ragged) -> entity_metrics.EntityCounts:
    """Return the counts of entities by row."""
    types = (logits.values.shape[-1] - 1) // 2
    gold, predicted = (
        entity_metrics.from_tag_ids(rows, types) for rows in (targets, _tags(logits))
    )
    return entity_metrics.count(gold, predicted, [str(i) for i in range(types)])


def _type_table(types: Sequence[str], values: Mapping[str, np.ndarray]) -> Table:
    """Return the metrics of each type, the one with the lowest F1 first."""
    names = ("precision", "recall", "f1")
    rows = [
        [
            kind,
            *(float(values[name][i]) if values["support"][i] else "" for name in names),
            int(values["support"][i]),
            int(values["predicted"][i]),
        ]
        for i, kind in enumerate(types)
    ]
    order = sorted(range(len(types)), key=lambda i: (values["support"][i] == 0, values["f1"][i]))
    return Table("By type", ["type", *names, "entities", "predicted"], rows, order)


def _error_table(types: Sequence[str], errors: entity_metrics.EntityErrors) -> Table:
    """Return how the entities of each type were missed, the type with the most errors first."""
    header = ["type", "correct", "other type", "other boundaries", "missed", "spurious"]
    confused = errors.confusion.sum(axis=1)
    columns = (errors.hits, confused, errors.boundary_gold, errors.missed, errors.spurious)
    rows = [[kind, *(int(column[i]) for column in columns)] for i, kind in enumerate(types)]
    order = sorted(range(len(types)), key=lambda i: -sum(int(c[i]) for c in columns[1:]))
    return Table("Errors", header, rows, order)


def _confusion(types: Sequence[str], errors: entity_metrics.EntityErrors) -> Sequence[Section]:
    """Return the matrix of types whose boundaries are right; none of a single type."""
    if not 1 < len(types) <= MATRIX_TYPES:
        return ()
    counts = errors.confusion + np.diag(errors.hits)
    title = "entities with the right boundaries: true type down, predicted across"
    return (Matrix(title, types, counts, counts.sum(axis=1)),)


TASK = TokenClassification()
