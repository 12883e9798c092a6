"""The private names of Keras and TensorFlow that tfft reads.

Other modules do not read them; subclasses use those in `INHERITED`. When a release changes one,
tests/utils/test_keras_internals.py fails first.
"""

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer
from tensorflow.python.framework import op_def_registry

# Class -> private names of it that its subclasses in tfft override or read.
INHERITED: Mapping[str, tuple[str, ...]] = {
    # Regularisation losses in shares, building without a batch, the mean of the loss.
    "keras.Model": (
        "_aggregate_additional_loss",
        "_distribute_strategy",
        "_loss_tracker",
        "_maybe_symbolic_build",
        "_symbolic_build",
    ),
    # Variables of a SavedModel, which were created before the layer.
    "keras.layers.Layer": (
        "_non_trainable_variables",
        "_track_variable",
        "_trainable_variables",
    ),
    # Values that are computed once a step, decay and rates by variable, averages of the weights.
    "keras.optimizers.Optimizer": (
        "_apply_weight_decay",
        "_get_current_learning_rate",
        "_get_variable_index",
        "_iterations",
        "_model_variables_moving_average",
        "_trainable_variables",
        "_update_model_variables_moving_average",
        "_use_weight_decay",
    ),
    # The moments of optimizers that read and write them.
    "keras.optimizers.Adam": ("_momentums", "_velocities"),
    # The first trial is the default, the journal replaces KerasTuner's files.
    "keras_tuner.Oracle": (
        "_check_consecutive_failures",
        "_compute_values_hash",
        "_display",
        "_duplicate",
        "_random_values",
        "_record_values",
        "_retry_queue",
        "_save_trial",
        "_tried_so_far",
    ),
    "keras_tuner.oracles.BayesianOptimizationOracle": ("_random_populate_space",),
    "keras_tuner.oracles.HyperbandOracle": ("_brackets", "_get_size"),
}

# Methods for which Keras' TensorFlow optimizer calls `merge_call`, and its base class does not.
_BACKEND_INDEPENDENT = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_backend_increment_gradient_accumulators",
    "_overwrite_model_variables_with_average_value",
)


# --- layers: `keras.Model.layers` ends at nested layers that are not models ---


def flat_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[Any]:
    """Return a layer and all layers below it, parents first."""
    return list(layer._flatten_layers(include_self=include_self))


def sublayers(layer: keras.layers.Layer) -> list[Any]:
    """Return the layers that a layer tracks directly: those whose parent it is."""
    return list(layer._layers)


def track_layer(layer: keras.layers.Layer, sublayer: keras.layers.Layer) -> None:
    """Make a built layer track a sublayer, which `setattr` refuses."""
    layer._layers.append(sublayer)


def untrack_layer(layer: keras.layers.Layer, sublayer: keras.layers.Layer) -> None:
    """Make a layer no longer track a sublayer."""
    layer._layers.remove(sublayer)


def has_kernel(layer: keras.layers.Layer) -> bool:
    """Return whether a dense layer has its kernel, which `delete_kernel` removes."""
    return layer._kernel is not None


def delete_kernel(layer: keras.layers.Layer) -> None:
    """Delete the kernel variable of a Dense or EinsumDense layer and free its memory."""
    layer._untrack_variable(layer._kernel)
    layer._delete_tracking("_kernel")  # TensorFlow tracks it separately and would keep its memory
    layer._kernel = None


def seed_generators(layer: keras.layers.Layer) -> list[keras.random.SeedGenerator]:
    """Return the seed generators of a layer, without those of its sublayers."""
    return list(getattr(layer, "_seed_generators", ()))


def calls_with_training(layer: keras.layers.Layer) -> bool:
    """Return whether the `call` of a layer has the argument `training`."""
    return layer._call_has_training_arg


def fixed_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables that a layer created as not trainable, whatever `trainable` is now."""
    return list(layer._non_trainable_variables)


# --- functional models ---


def nodes_bottom_up(model: keras.Model) -> list[Any]:
    """Return the calls of a functional model's layers, those nearest to the inputs first."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth]]


def inbound_nodes(layer: keras.layers.Layer) -> list[Any]:
    """Return the calls of a layer in functional models."""
    return list(layer._inbound_nodes)


def producer(tensor: keras.KerasTensor) -> Any:
    """Return the layer or operation whose output a symbolic tensor is."""
    return tensor._keras_history.operation


def compute_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, weight: Any, training: bool
) -> tf.Tensor:
    """Return the loss of `compile` for some rows, with the regularisation losses of the layers."""
    return model._compute_loss(x, y, y_pred, weight, training=training)


def forget_loss(model: keras.Model) -> None:
    """Remove the loss of an earlier `compile`, which one without a loss keeps."""
    model._compile_loss = None


# --- variables ---


def set_path(variable: keras.Variable, path: str) -> None:
    """Set the path of a variable, which Keras derives from the name scopes of its creation."""
    variable._path = path


def move_below(model: keras.Model, name: str) -> None:
    """Put a name before those of a functional model's layers, and the paths of its variables.

    Two models of one network can then be parts of one functional model, which needs different
    names. The inputs keep their names.
    """
    for operation in model.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            operation.name = f"{name}_{operation.name}"  # a name holds no slash
    for variable in model.weights:
        set_path(variable, f"{name}/{variable.path}")


# --- optimizers ---


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that an optimizer was built for, in the order of its slots."""
    return optimizer._trainable_variables


def weight_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable | None]:
    """Return the moving averages of the weights (`use_ema`), in the order of `trained_by`."""
    return optimizer._model_variables_moving_average


def momentums(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the first moments of an Adam-like optimizer, in the order of `trained_by`."""
    return optimizer._momentums


def update_without_merging(optimizer: keras.optimizers.Optimizer, clip_gradients: Any) -> None:
    """Make an optimizer update the copies of the current replica only, without a merge call.

    Args:
        optimizer: changed in place; overrides in its class are kept.
        clip_gradients: (optimizer, gradients) -> clipped gradients, in place of its own.
    """
    for name in _BACKEND_INDEPENDENT:
        if getattr(type(optimizer), name) is getattr(keras.optimizers.Optimizer, name):
            setattr(optimizer, name, MethodType(getattr(BaseOptimizer, name), optimizer))
    optimizer._clip_gradients = MethodType(clip_gradients, optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # `_tf_apply` wraps the `cond` over finite gradients in a `merge_call`.
        optimizer._tf_apply = optimizer._common_apply
    value = optimizer._iterations.value
    if isinstance(value, tf.distribute.DistributedValues):
        # ONLY_FIRST_REPLICA needs a merge call; each replica counts its iterations instead.
        value._aggregation = tf.VariableAggregation.NONE


def clip_like_keras(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor | None]
) -> list[tf.Tensor | None]:
    """Clip gradients as the class of an optimizer does."""
    return type(optimizer)._clip_gradients(optimizer, gradients)


# --- distributed data ---


def replica_specs(iterator: Any) -> Any:
    """Return the specs of the first replica's values, of the iterator of an epoch of `fit`."""
    return keras.tree.map_structure(
        lambda spec: getattr(spec, "_value_specs", (spec,))[0],
        iterator._distributed_dataset.element_spec,
    )


# --- TensorFlow ---


def op_definition(name: str) -> Any:
    """Return the OpDef of a TensorFlow op, which says whether it is stateful; None: no such op."""
    return op_def_registry.get(name)
