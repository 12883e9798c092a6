"""Build the signatures of an exported SavedModel, named as TF Serving expects.

| signature         | inputs                               | outputs                    | method   |
|-------------------|--------------------------------------|----------------------------|----------|
| `serving_default` | raw columns, strings [B] each        | the task's `decode`        | predict  |
| `tensors`         | prepared inputs; texts are padded to | the same; of a task of     | predict  |
|                   | `max_length` tokens                  | tokens those of each token |          |
| `serialized`      | `examples`: tf.Examples, strings [B] | the same                   | predict  |
| `classify`        | `inputs`: tf.Examples, strings [B]   | `classes`, `scores` [B, C] | classify |
| `regress`         | the same                             | `outputs` float32 [B]      | regress  |

A task has `classify`, `regress` or neither (`Task.example_signatures`).

For images, `serving_default` and `serialized` also return `status`, string [B]: `ok`, or the reason
why an image cannot be decoded. The other outputs of a failed row are zero, False or empty, as are
its `classes` and `scores`; the other rows of the batch are not affected.

The features of a tf.Example are the raw columns. All axes but the first are static: TF Serving
joins the requests of several clients in one batch and rejects all of them if their lengths differ
(batching_session.cc). Its own padding would pad the mask with ones. With
--enable_signature_method_name_check its Classify call checks the method name, which TensorFlow 2
does not write; `Signatures.save` sets it in the saved file.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.backbones.families.unpadding import without_padding
from tfft.config import TaskConfig
from tfft.export.weight_storage import StoredWeight
from tfft.preprocess import Inputs
from tfft.preprocess.graph.image_ops import OK
from tfft.preprocess.image import STATUS
from tfft.preprocess.text import empty_batch
from tfft.spec import Backbone, Fitted, Task
from tfft.utils import keras_internals

RAW = "serving_default"
PREDICT = (RAW, "tensors", "serialized")  # the signatures that every export has
# Signatures of tf.Examples -> their method names; the other signatures: predict.
METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}
WINDOWS_AT_ONCE = 32  # windows that a served model computes at once, whatever their rows
Outputs = Mapping[str, tf.Tensor]


def _classes_and_scores(outputs: Outputs, labels: Sequence[str]) -> Outputs:
    """Return `classes` and `scores`, both [B, C]: the names of the classes repeat in each row."""
    scores = outputs["probabilities"]
    return {
        "classes": tf.broadcast_to(tf.constant(list(labels)), tf.shape(scores)),
        "scores": scores,
    }


# Signature -> its answer, from the outputs of the task's `decode` and the labels.
RESULTS: Mapping[str, Callable[[Outputs, Sequence[str]], Outputs]] = {
    **dict.fromkeys(PREDICT, lambda outputs, _: outputs),
    "classify": _classes_and_scores,
    "regress": lambda outputs, _: {"outputs": outputs["values"][:, 0]},
}


def names(task: Task, labels: Sequence[str], inputs: Inputs) -> tuple[str, ...]:
    """Return the names of all signatures of an export."""
    return (*PREDICT, *of_examples(task, labels, inputs))


def of_examples(task: Task, labels: Sequence[str], inputs: Inputs) -> tuple[str, ...]:
    """Return the names of the signatures of tf.Examples whose answers TF Serving defines.

    `regress` has no place for a status: a number for an image that cannot be decoded would look
    like an answer, so models that read images lack it.
    """
    signatures = task.example_signatures(labels)
    return tuple(name for name in signatures if name != "regress" or inputs.image is None)


@dataclass(frozen=True)
class Servable:
    """A trained model with its preprocessing and the decoding of its outputs.

    Attributes:
        model: maps prepared inputs to logits, [B, C], or [B, T, C] of windows.
        inputs: prepares raw rows.
        task: decodes the logits.
        labels: class names, in the order of the outputs.
        fitted: values fitted on the data, by name.
        backbone: the backbone that the model was built from.
        config: the config section `task`.
    """

    model: keras.Model
    inputs: Inputs
    task: Task
    labels: Sequence[str]
    fitted: Fitted
    backbone: Backbone
    config: TaskConfig


class Signatures(tf.Module):
    """The module that is saved: preprocessing tables, weights and one function per signature.

    Args:
        servable: the model to export.
        stored: weights that are saved in another form.
        skip_padding: compute without padding tokens in encoders whose family supports it.

    Attributes:
        functions: signature name -> function.
        prepare: maps raw columns, strings [B] each, to the model's inputs.
    """

    def __init__(
        self, servable: Servable, stored: Sequence[StoredWeight] = (), skip_padding: bool = True
    ):
        super().__init__()
        model, inputs, task = servable.model, servable.inputs, servable.task
        labels = list(servable.labels)
        # tf.Module tracks what its attributes hold; anything else would not be saved.
        self._graph = graph = inputs.graph()
        replaced = {id(weight.variable) for weight in stored}
        self._weights = [v.value for v in model.weights if id(v) not in replaced]
        self._stored = [weight.parts for weight in stored]
        # Tracks the functions and tables of a SavedModel inside the model, not only its weights.
        self._parts = [x.saved for x in keras_internals.flat_layers(model) if hasattr(x, "saved")]
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in inputs.columns}
        input_specs = inputs.input_specs()

        def predict_prepared(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            values = [(weight.variable, weight.value()) for weight in stored]
            # Within the scope, the model reads the restored value in place of the variable.
            unpadding = without_padding(model) if skip_padding else nullcontext()
            with keras.StatelessScope(values), unpadding:
                batch = dict(zip(input_specs, tensors, strict=True))
                return task.decode(model(batch, training=False), labels, servable.fitted)

        # Each function is traced once and called by the functions below it.
        strings = [tf.TensorSpec([None], tf.string, name) for name in inputs.columns]
        prepare_columns = graph.located if task.of_tokens else graph
        self.prepare = prepare = _function(lambda *columns: prepare_columns(*columns), strings)
        model_function = _function(predict_prepared, list(input_specs.values()))

        def predict_raw(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
            batch = prepare(*columns)
            inputs_of_model = [batch[name] for name in input_specs]
            if task.of_tokens:
                outputs = {task.output: _in_slices(model_function, inputs_of_model, task.output)}
            else:
                outputs = model_function(*inputs_of_model)
            outputs = task.locate(outputs, batch, labels, servable.fitted)
            if STATUS not in batch:
                return outputs
            return {**_blank_failed_rows(outputs, batch[STATUS]), STATUS: batch[STATUS]}

        raw_function = _function(predict_raw, strings)

        def predict_fixed(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            batch = dict(zip(input_specs, tensors, strict=True))
            return without_padded(task, model_function(*tensors), batch)

        def predict_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            columns = tf.io.parse_example(examples, features)
            return raw_function(*(columns[name] for name in inputs.columns))

        def answer_examples(name: str, examples: tf.Tensor) -> Outputs:
            predictions = predict_examples(examples)
            outputs = RESULTS[name](predictions, labels)
            if STATUS not in predictions:
                return outputs
            return _blank_failed_rows(outputs, predictions[STATUS])

        # One function per signature; each name is part of the clients' interface.
        self.functions = {
            RAW: raw_function,
            "tensors": _function(predict_fixed, list(fixed(inputs).values())),
            "serialized": _function(
                predict_examples, [tf.TensorSpec([None], tf.string, "examples")]
            ),
            **{
                name: _function(
                    partial(answer_examples, name), [tf.TensorSpec([None], tf.string, "inputs")]
                )
                for name in of_examples(task, labels, inputs)
            },
        }

    def save(self, folder: Path) -> None:
        """Write the SavedModel into `folder`, with the method names that TF Serving may check."""
        concrete_functions = {n: f.get_concrete_function() for n, f in self.functions.items()}
        # Nothing computes gradients of a served function.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(self, str(folder), concrete_functions, options)
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
        for name in METHODS.keys() & self.functions.keys():
            method = METHODS[name]
            updater.replace_method_name(signature_key=name, method_name=method, tags="serve")
        level = tf.get_logger().level
        tf.get_logger().setLevel("ERROR")  # it logs the folder, which is a temporary one
        updater.save()
        tf.get_logger().setLevel(level)


def _in_slices(
    function: Callable[..., Outputs], tensors: Sequence[tf.Tensor], output: str
) -> tf.Tensor:
    """Return an output of a function of windows, [E, T, C], computed `WINDOWS_AT_ONCE` at a time.

    A request of a few rows may be thousands of windows.
    """
    total = tf.shape(tensors[0])[0]
    count = tf.maximum(1, -(-total // WINDOWS_AT_ONCE))
    results = tf.TensorArray(tf.float32, count, infer_shape=False)

    def compute(index: tf.Tensor, results: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        start = index * WINDOWS_AT_ONCE
        part = function(*(tensor[start : start + WINDOWS_AT_ONCE] for tensor in tensors))
        return index + 1, results.write(index, part[output])

    _, results = tf.while_loop(
        lambda index, _: index < count, compute, (0, results), parallel_iterations=1
    )
    outputs = function.get_concrete_function().structured_outputs
    return tf.ensure_shape(results.concat(), outputs[output].shape)


def fixed(inputs: Inputs) -> dict[str, tf.TensorSpec]:
    """Return the input specs of `tensors`, in which texts have `max_length` tokens."""
    return {
        name: tf.TensorSpec(
            # Texts have the only axis that is not static.
            [None, *(inputs.text.max_length if size is None else size for size in spec.shape[1:])],
            spec.dtype,
            name,
        )
        for name, spec in inputs.input_specs().items()
    }


def padded(inputs: Inputs, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a prepared batch with its texts padded to `max_length` tokens, as `tensors` needs."""
    if "padding_mask" not in batch:
        return dict(batch)
    rows, width = batch["padding_mask"].shape
    result = empty_batch(rows, inputs.text.max_length, inputs.text.pad_id)
    for name, array in result.items():
        array[:, :width] = batch[name]
    return {**batch, **result}


def without_padded(
    task: Task, outputs: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the outputs with zeros for the padding of a batch, in a task of tokens."""
    if not task.of_tokens:
        return dict(outputs)
    mask = tf.cast(batch["padding_mask"], tf.float32)[:, :, None]
    return {name: value * mask for name, value in outputs.items()}


def output_specs(servable: Servable, signature: str) -> dict[str, tf.TensorSpec]:
    """Return the name, shape and dtype of what a signature returns, without `status`."""
    task, labels, fitted = servable.task, servable.labels, servable.fitted

    def results(logits: tf.Tensor, *tokens: tf.Tensor) -> Outputs:
        outputs = task.decode(logits, labels, fitted)
        if signature != "tensors":
            outputs = task.locate(outputs, dict(zip(_TOKENS, tokens, strict=False)), labels, fitted)
        return RESULTS[signature](outputs, labels)

    token_axis = [None] if task.of_tokens else []
    specs = [tf.TensorSpec([None, *token_axis, len(labels)], tf.float32)]
    specs += list(_TOKENS.values()) if task.of_tokens else []
    return _function(results, specs).get_concrete_function().structured_outputs


# What `GraphTokenizer.located` returns beside the inputs of a model.
_TOKENS = {
    "own": tf.TensorSpec([None, None], tf.bool),
    "starts": tf.TensorSpec([None, None], tf.int32),
    "ends": tf.TensorSpec([None, None], tf.int32),
    "first": tf.TensorSpec([None, None], tf.bool),
    "row": tf.TensorSpec([None], tf.int32),
    "text": tf.TensorSpec([None], tf.string),
}


def _blank_failed_rows(outputs: Outputs, status: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the outputs with zero, False or "" in rows whose status, string [B], is not `OK`."""

    def masked(value: tf.Tensor) -> tf.Tensor:
        ok_rows = tf.reshape(status == OK, [-1, *[1] * (value.shape.rank - 1)])  # [B, 1, ...]
        return tf.where(ok_rows, value, tf.zeros_like(value))

    return {name: masked(value) for name, value in outputs.items()}


def _function(body, specs: list[tf.TensorSpec]) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(body, input_signature=specs, autograph=False)


def example(columns: Sequence[str], row: Sequence[str | bytes]) -> bytes:
    """Return a raw row as a serialized tf.Example with one feature per column."""
    values = [value.encode() if isinstance(value, str) else value for value in row]
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in zip(columns, values, strict=True)
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
