"""What a SavedModel answers to, under the names and methods that TF Serving knows.

| signature         | takes                                | answers                    | method   |
|-------------------|--------------------------------------|----------------------------|----------|
| `serving_default` | raw columns, strings [B] each        | the task's `decode`        | predict  |
| `tensors`         | what the preparation makes of them,  | the same                   | predict  |
|                   | rows of `max_length` tokens          |                            |          |
| `serialized`      | `examples`: tf.Examples, strings [B] | the same                   | predict  |
| `classify`        | `inputs`: tf.Examples, strings [B]   | `classes`, `scores` [B, C] | classify |

Of pictures, those that decode them answer a `status` too, string [B]: `ok`, or what is wrong with a
picture. The other outputs of such a row are zero, False or empty; other rows are answered as ever.

The features of a tf.Example are the raw columns. All axes but the first are static: TF Serving
joins the rows of several clients in a batch and refuses all of them if their lengths differ
(batching_session.cc); it can pad, but would pad the mask with ones. With
--enable_signature_method_name_check its Classify call looks at the method, which TensorFlow 2 does
not write: it is set in the saved file.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfft.backbones.families.unpadding import packed
from tfft.config import TaskConfig
from tfft.export.compact import StoredWeight
from tfft.preprocess import Inputs
from tfft.preprocess.graph.image_ops import OK
from tfft.preprocess.image import STATUS
from tfft.preprocess.text import empty_batch
from tfft.spec import Backbone, Task

RAW = "serving_default"
METHODS = {"classify": "tensorflow/serving/classify"}  # of the others: predict


@dataclass(frozen=True)
class Servable:
    """A trained model with what turns raw rows into its inputs and its outputs into answers.

    Attributes:
        model: prepared inputs -> logits.
        labels: in the order of the outputs.
        thresholds: of a task that has them, [C].
        backbone, config: what the model was made of, and the section `task`.
    """

    model: keras.Model
    inputs: Inputs
    task: Task
    labels: Sequence[str]
    thresholds: np.ndarray | None
    backbone: Backbone
    config: TaskConfig


class Signatures(tf.Module):
    """What is saved: the preparation's tables, the weights, a function for each signature.

    Args:
        stored: weights that are saved in another form.
        skip_padding: encoders whose families can compute without padding do.

    Attributes:
        functions: signature -> its function.
        prepare: raw columns, strings [B] each -> the model's inputs.
    """

    def __init__(
        self, servable: Servable, stored: Sequence[StoredWeight] = (), skip_padding: bool = True
    ):
        super().__init__()
        model, inputs, task = servable.model, servable.inputs, servable.task
        labels = list(servable.labels)
        self._graph = graph = inputs.graph()
        others = {id(one.variable) for one in stored}
        self._weights = [v.value for v in model.weights if id(v) not in others]
        self._stored = [one.parts for one in stored]
        # The functions and tables of a SavedModel that is a part of the model.
        self._parts = [x.saved for x in model._flatten_layers() if hasattr(x, "saved")]
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in inputs.columns}
        prepared = inputs.input_specs()

        def of_tensors(*parts: tf.Tensor) -> dict[str, tf.Tensor]:
            values = [(one.variable, one.value()) for one in stored]
            packing = packed(model) if skip_padding else nullcontext()
            with keras.StatelessScope(values), packing:
                logits = model(dict(zip(prepared, parts, strict=True)), training=False)
            return task.decode(logits, labels, servable.thresholds)

        # Each is traced once, and called by those below it.
        strings = [tf.TensorSpec([None], tf.string, name) for name in inputs.columns]
        self.prepare = prepare = _function(lambda *columns: graph(*columns), strings)
        decoded = _function(of_tensors, list(prepared.values()))

        def answered(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
            batch = prepare(*columns)
            outputs = decoded(*(batch[name] for name in prepared))
            if STATUS not in batch:
                return outputs
            return {**_of_good_rows(outputs, batch[STATUS]), STATUS: batch[STATUS]}

        raw = _function(answered, strings)

        def parsed(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            columns = tf.io.parse_example(examples, features)
            return raw(*(columns[name] for name in inputs.columns))

        def classified(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            answers = parsed(examples)
            scores = answers["probabilities"]
            outputs = {"classes": tf.broadcast_to(labels, tf.shape(scores)), "scores": scores}
            return _of_good_rows(outputs, answers[STATUS]) if STATUS in answers else outputs

        self.functions = {
            RAW: raw,
            "tensors": _function(lambda *parts: decoded(*parts), list(fixed(inputs).values())),
            "serialized": _function(parsed, [tf.TensorSpec([None], tf.string, "examples")]),
            "classify": _function(classified, [tf.TensorSpec([None], tf.string, "inputs")]),
        }

    def save(self, folder: Path) -> None:
        """Write the SavedModel."""
        concrete = {n: f.get_concrete_function() for n, f in self.functions.items()}
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(self, str(folder), concrete, options)
        changed = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
        for name, method in METHODS.items():
            changed.replace_method_name(signature_key=name, method_name=method, tags="serve")
        level = tf.get_logger().level
        tf.get_logger().setLevel("ERROR")  # it says where it writes, which is not yet the place
        changed.save()
        tf.get_logger().setLevel(level)


def fixed(inputs: Inputs) -> dict[str, tf.TensorSpec]:
    """Return the prepared inputs as `tensors` takes them: texts of `max_length` tokens."""
    return {
        name: tf.TensorSpec(
            [None, *(inputs.max_length if size is None else size for size in spec.shape[1:])],
            spec.dtype,
            name,
        )
        for name, spec in inputs.input_specs().items()
    }


def padded(inputs: Inputs, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pad the rows of a batch to the length that `tensors` takes."""
    if "padding_mask" not in batch:
        return dict(batch)
    rows, width = batch["padding_mask"].shape
    whole = empty_batch(rows, inputs.max_length, inputs.pad_id)
    for name, array in batch.items():
        whole[name][:, :width] = array
    return whole


def _of_good_rows(outputs: dict[str, tf.Tensor], status: tf.Tensor) -> dict[str, tf.Tensor]:
    """The outputs; zero, False or empty in rows whose status, string [B], is not `OK`."""

    def masked(value: tf.Tensor) -> tf.Tensor:
        good = tf.reshape(status == OK, [-1, *[1] * (value.shape.rank - 1)])
        return tf.where(good, value, tf.zeros_like(value))

    return {name: masked(value) for name, value in outputs.items()}


def _function(body, specs: list[tf.TensorSpec]) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(body, input_signature=specs, autograph=False)


def example(columns: Sequence[str], row: Sequence[str | bytes]) -> bytes:
    """A raw row as a serialized tf.Example."""
    raw = [value.encode() if isinstance(value, str) else value for value in row]
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in zip(columns, raw, strict=True)
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
