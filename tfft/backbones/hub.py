"""TF Hub SavedModels in TF2's reusable format, as trainable Keras 3 layers.

The layer shares the SavedModel's variables and calls the SavedModel's functions. Features are
therefore bit-identical to the original's, and masks, precision, replicas and export see ordinary
variables under their original names. It replaces hub.KerasLayer, which Keras 3 does not support.

A SavedModel is a program. It is loaded only if the config names it, and `saved_graph` refuses any
that may do more than compute.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfft.backbones import hub_text, pixels, saved_graph
from tfft.config import ModelConfig
from tfft.spec import Backbone, HeadStyle, ImageSpec, Stage
from tfft.utils import keras_internals, pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors

DEFAULT_SIZE = 224


class HubLayer(keras.layers.Layer):
    """Layer that calls a SavedModel in TF2's reusable format.

    A SavedModel called with `training=True` updates all of its BatchNorm statistics, also those of
    frozen layers. It is therefore called so only if all of its trainable variables are trained and
    `frozen_statistics` is off, or if it has no statistics.

    Args:
        saved: the object that `tf.saved_model.load` returned.

    Attributes:
        saved: the same object.
        frozen_statistics: whether a model with statistics is always called with `training=False`.
    """

    def __init__(self, saved: Any, **kwargs: Any):
        # The SavedModel's functions take float32: no dtype policy may cast their inputs.
        super().__init__(autocast=False, dtype="float32", **kwargs)
        self._store(saved)
        self.frozen_statistics = False
        # As `initializer`, Keras' TensorFlow backend adopts a tf.Variable itself, without a copy.
        trainable_ids = {id(v) for v in getattr(saved, "trainable_variables", ())}
        name_counts: dict[str, int] = {}
        for variable in saved.variables:
            # Names may repeat within a SavedModel, but paths must be unique.
            name = variable.name.partition(":")[0]
            name_counts[name] = name_counts.get(name, 0) + 1
            name += f"_{name_counts[name] - 1}" if name_counts[name] > 1 else ""
            keras_variable = keras.Variable(
                initializer=variable,
                trainable=id(variable) in trainable_ids,
                dtype=variable.dtype.name,
                shape=variable.shape,
                name=name.replace("/", "."),
            )
            # Keras refuses a slash in `name`, but masks match the original path.
            keras_internals.set_path(keras_variable, f"{self.name}/{name}")
            self._track_variable(keras_variable)
        self._takes_training = _takes_training(saved)
        self.built = True

    def _store(self, saved: Any) -> None:
        # Bypass Keras' attribute tracking, which would register the variables a second time.
        self.__dict__["saved"] = saved

    def call(self, x, training=False):
        """Call the SavedModel on its inputs, a tensor or a dict, and return its outputs.

        Its regularization losses are added while the layer trains.
        """
        if tf.is_tensor(x) and x.dtype.is_floating:
            x = tf.cast(x, tf.float32)
        losses = getattr(self.saved, "regularization_losses", ())
        if training and self.trainable and losses:
            self.add_loss(tf.add_n([loss() for loss in losses]))
        if not self._takes_training:
            return self.saved(x)
        inference_mode = self._non_trainable_variables and (
            self.frozen_statistics or not self._fully_trainable()
        )
        return self.saved(x, training=bool(training and self.trainable and not inference_mode))

    def _fully_trainable(self) -> bool:
        return all(variable.trainable for variable in self._trainable_variables)

    def compute_output_spec(self, x, training=False):
        """Return the outputs' shapes and dtypes, by tracing the SavedModel's call."""
        # `call` casts every float to float32, whatever the dtype policy of the layers below.
        spec = keras.tree.map_structure(
            lambda t: tf.TensorSpec(t.shape, "float32" if "float" in t.dtype else t.dtype), x
        )
        function = tf.function(self.call).get_concrete_function(spec)
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, dtype=t.dtype.name), function.structured_outputs
        )


def load(config: ModelConfig, precision: str) -> Backbone:
    """Load a SavedModel as a backbone.

    Args:
        config: the `model` section; its backbone is `hub:` and a folder or a handle.
        precision: a Keras dtype policy, of the layers around the SavedModel; it keeps float32.

    Raises:
        UserError: It cannot be downloaded or read, or is not in the reusable format.
    """
    handle = config.backbone.partition(":")[2]
    folder = pretrained.saved_model(handle)
    description = {
        "provider": "hub",
        "handle": handle,
        "size": config.image_size,
        "scaling": config.scaling or "unit",
        "stages": list(config.stages) if config.stages is not None else None,
    }
    where = f"model.backbone: hub:{handle}"
    saved = _saved(folder, where)
    kind = hub_text.input_kind(saved)
    if kind != "images":
        if config.image_size is not None or config.scaling is not None:
            raise UserError("model.image_size, model.scaling: this SavedModel reads texts")
        preprocessor = (
            pretrained.saved_model(config.tokenizer) if config.tokenizer is not None else None
        )
        description |= {"reads": kind}
        description["tokenizer"] = hub_text.vocabulary(folder, kind, preprocessor, where)
    elif config.tokenizer is not None:
        raise UserError("model.tokenizer: this SavedModel reads images")
    backbone = _wrap(saved, description, precision)
    return replace(backbone, fingerprint=_fingerprint(folder, description))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """Rebuild a backbone from its description. The graph comes from the SavedModel's files.

    Raises:
        UserError: The files are missing, or hold another kind of model.
    """
    where = f"model.backbone: hub:{description['handle']}"
    saved = _saved(pretrained.saved_model(description["handle"]), where)
    return _wrap(saved, description, precision)


def _saved(folder: Path, where: str) -> Any:
    """Load a SavedModel after its graph is checked.

    Raises:
        UserError: It does not load, or is not in the reusable format.
    """
    saved_graph.check(folder, where)  # before TensorFlow reads it
    with library_errors(f"{where}: the SavedModel cannot be loaded"):
        saved = tf.saved_model.load(str(folder))
    # A SavedModel of signatures alone lacks these attributes.
    variables, trainable = (
        getattr(saved, name, ()) for name in ("variables", "trainable_variables")
    )
    losses = getattr(saved, "regularization_losses", ())
    lists = all(isinstance(value, Sequence) for value in (variables, trainable, losses))
    if (
        not callable(saved)
        or not lists
        or not variables
        or not all(isinstance(v, tf.Variable) for v in (*variables, *trainable))
    ):
        raise UserError(
            f"{where}: is not in TF2's reusable format (callable, with `variables`): a SavedModel "
            "of signatures alone, as TF1's are, cannot be fine-tuned"
        )
    return saved


def _wrap(saved: Any, description: Mapping[str, Any], precision: str) -> Backbone:
    where = f"model.backbone: hub:{description['handle']}"
    if (kind := description.get("reads", "images")) != "images":
        backbone = hub_text.build(HubLayer(saved, name="hub"), kind, description)
        if (patterns := description["stages"]) is not None:
            paths = [v.path for v in backbone.model.weights]
            return replace(backbone, stages=_stages(paths, patterns, where))
        return backbone
    # `model.image_size` first, then the size that the SavedModel's signature fixes.
    size = description["size"] or _signature_size(saved) or DEFAULT_SIZE
    layer = HubLayer(saved, name="hub")
    with pixels.policy(precision):
        image = keras.Input([size, size, 3], dtype="float32", name="image")
        scaling = pixels.SCALINGS[description["scaling"]]
        x = pixels.Pixels(**scaling, name="pixels")(image) if scaling else image
        with library_errors(
            f"{where}: does not take images of {size} x {size}; set model.image_size to the size "
            "that it reads"
        ):
            outputs = layer(x)
    model = _features(image, outputs, where)
    stages = _stages([v.path for v in layer.weights], description["stages"], where)
    return Backbone(
        model=model,
        stages=stages,
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=ImageSpec((size, size)),
    )


def _features(image: keras.KerasTensor, outputs: Any, where: str) -> keras.Model:
    """Build the model with the outputs `pooled` and, where the SavedModel returns a map, `map`."""
    if isinstance(outputs, dict):
        outputs = outputs.get("default", outputs.get("pooled_output"))
    has_width = isinstance(outputs, keras.KerasTensor) and outputs.shape[-1:] != (None,)
    rank = len(outputs.shape) if has_width else 0
    if rank == 4:
        return pixels.encoder(image, outputs)
    if rank == 2:
        return keras.Model({"image": image}, {"pooled": outputs}, name="encoder")
    raise UserError(f"{where}: must return a vector or a map per image")


def _stages(paths: Sequence[str], patterns: Sequence[str] | None, where: str) -> tuple[Stage, ...]:
    """Return stages by `model.stages`, or by the variables' names up to their first number.

    `block_3_expand/kernel` and `block_3_project/kernel` then belong to one stage. Stages are in the
    order of the variables.
    """
    if patterns is not None:
        return tuple(_stages_by_patterns(paths, patterns, where))
    groups: dict[str, list[str]] = {}
    for path in paths:
        name = path.partition("/")[2]
        numbered = re.match(r"(?:[^/]*/)*?[^/]*?\d+(?=[_/]|$)", name)
        groups.setdefault(numbered[0] if numbered else name.partition("/")[0], []).append(path)
    return tuple(
        Stage(f"block_{i}", f"(?:{'|'.join(map(re.escape, members))})$")
        for i, members in enumerate(groups.values())
    )


def _stages_by_patterns(
    paths: Sequence[str], patterns: Sequence[str], where: str
) -> Sequence[Stage]:
    stages, remaining = [], list(paths)
    for i, pattern in enumerate(patterns):
        try:
            members = [p for p in remaining if re.search(pattern, p.partition("/")[2])]
        except re.error as error:
            raise UserError(
                f"model.stages: {pattern!r} is not a regular expression: {error}"
            ) from None
        if not members:
            raise UserError(f"model.stages: {pattern!r} matches no variable of {where}")
        stages.append(Stage(f"block_{i}", f"(?:{'|'.join(map(re.escape, members))})$"))
        remaining = [p for p in remaining if p not in members]
    if remaining:
        raise UserError(f"model.stages: no pattern matches {remaining[0].partition('/')[2]!r}")
    return stages


def _takes_training(saved: Any) -> bool:
    """Return whether the call of a SavedModel has an argument `training`."""
    return any(
        # `training` is a keyword or a positional bool; a function is traced for each of its values.
        "training" in str(function.structured_input_signature[1])
        or any(isinstance(a, bool) for a in function.structured_input_signature[0])
        for function in getattr(saved.__call__, "concrete_functions", ())
    )


def _signature_size(saved: Any) -> int | None:
    """Return the image side in the signature of its call, or None if that is free."""
    for function in getattr(saved.__call__, "concrete_functions", ()):
        for spec in keras.tree.flatten(function.structured_input_signature):
            shape = getattr(spec, "shape", None)
            # [B, H, W, 3]
            if shape is not None and shape.rank == 4 and shape[1] is not None:
                return int(shape[1])
    return None


def _fingerprint(folder: Path, description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(description), sort_keys=True).encode())
    files = [folder / "saved_model.pb", *sorted((folder / "variables").glob("variables.data*"))]
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
