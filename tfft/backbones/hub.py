"""TF Hub: SavedModels in TF2's reusable format, as Keras 3 layers that train.

The layer shares the SavedModel's variables and calls its own functions, so features are the
original's to the bit, and masks, precision, replicas and export see ordinary variables under the
SavedModel's own names. hub.KerasLayer does not exist on Keras 3; this is what takes its place.

A SavedModel is a program. It is only loaded where it was named, and one that may do more than
compute is refused (`saved_graph`).
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
from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors

DEFAULT_SIZE = 224


class HubLayer(keras.layers.Layer):
    """A SavedModel in TF2's reusable format.

    It runs as in training only where all of it moves and its statistics may: a SavedModel updates
    its own BatchNorm statistics, also those of its frozen layers.

    Args:
        saved: what `tf.saved_model.load` gave.

    Attributes:
        saved: the same.
        keep_statistics: whether it runs as in inference, whatever moves; for a model that has
            statistics.
    """

    def __init__(self, saved: Any, **kwargs: Any):
        super().__init__(autocast=False, dtype="float32", **kwargs)
        self._holds(saved)
        self.keep_statistics = False
        # The TensorFlow backend of Keras keeps the variable that it is given: nothing is copied.
        moving = {id(v) for v in getattr(saved, "trainable_variables", ())}
        taken: dict[str, int] = {}
        for variable in saved.variables:
            name = variable.name.partition(":")[0]
            taken[name] = taken.get(name, 0) + 1
            name += f"_{taken[name] - 1}" if taken[name] > 1 else ""
            own = keras.Variable(
                initializer=variable,
                trainable=id(variable) in moving,
                dtype=variable.dtype.name,
                shape=variable.shape,
                name=name.replace("/", "."),
            )
            own._path = f"{self.name}/{name}"  # Keras allows no slash in a name
            self._track_variable(own)
        self._takes_training = _takes_training(saved)
        self.built = True

    def _holds(self, saved: Any) -> None:
        # Not an attribute that Keras tracks: its variables would be found twice.
        self.__dict__["saved"] = saved

    def call(self, x, training=False):
        """What the SavedModel takes -> what it gives."""
        if tf.is_tensor(x) and x.dtype.is_floating:
            x = tf.cast(x, tf.float32)
        losses = getattr(self.saved, "regularization_losses", ())
        if training and self.trainable and losses:
            self.add_loss(tf.add_n([loss() for loss in losses]))
        if not self._takes_training:
            return self.saved(x)
        still = self._non_trainable_variables and (self.keep_statistics or not self._whole())
        return self.saved(x, training=bool(training and self.trainable and not still))

    def _whole(self) -> bool:
        return all(variable.trainable for variable in self._trainable_variables)

    def compute_output_spec(self, x, training=False):
        """The shape of what comes out, from the SavedModel's own signature."""
        spec = keras.tree.map_structure(
            lambda t: tf.TensorSpec(t.shape, "float32" if "float" in t.dtype else t.dtype), x
        )
        found = tf.function(self.call).get_concrete_function(spec)
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, dtype=t.dtype.name), found.structured_outputs
        )


def load(config: ModelConfig, precision: str) -> Backbone:
    """A SavedModel's features.

    Raises:
        UserError: it cannot be had, is none, or is not in the reusable format.
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
    kind = hub_text.reads(saved)
    if kind != "pictures":
        if config.image_size is not None or config.scaling is not None:
            raise UserError("model.image_size, model.scaling: this SavedModel reads texts")
        other = pretrained.saved_model(config.tokenizer) if config.tokenizer is not None else None
        description |= {"reads": kind}
        description["tokenizer"] = hub_text.vocabulary(folder, kind, other, where)
    elif config.tokenizer is not None:
        raise UserError("model.tokenizer: this SavedModel reads pictures")
    backbone = _wrap(saved, description, precision)
    return replace(backbone, fingerprint=_fingerprint(folder, description))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The same, from what `load` described: its graph is that of its files."""
    where = f"model.backbone: hub:{description['handle']}"
    saved = _saved(pretrained.saved_model(description["handle"]), where)
    return _wrap(saved, description, precision)


def _saved(folder: Path, where: str) -> Any:
    """The SavedModel.

    Raises:
        UserError: it does not load, or not in the reusable format.
    """
    saved_graph.check(folder, where)
    with library_errors(f"{where}: not a SavedModel that loads"):
        saved = tf.saved_model.load(str(folder))
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
    if (kind := description.get("reads", "pictures")) != "pictures":
        backbone = hub_text.build(HubLayer(saved, name="hub"), kind, description)
        if (given := description["stages"]) is not None:
            paths = [v.path for v in backbone.model.weights]
            return replace(backbone, stages=_stages(paths, given, where))
        return backbone
    size = description["size"] or _own_size(saved) or DEFAULT_SIZE
    layer = HubLayer(saved, name="hub")
    with pixels.policy(precision):
        image = keras.Input([size, size, 3], dtype="float32", name="image")
        scaling = pixels.SCALINGS[description["scaling"]]
        x = pixels.Pixels(**scaling, name="pixels")(image) if scaling else image
        with library_errors(
            f"{where}: does not take pictures of {size} x {size}; it reads no pictures, or others "
            "(model.image_size)"
        ):
            found = layer(x)
    model = _features(image, found, where)
    stages = _stages([v.path for v in layer.weights], description["stages"], where)
    features = {name: int(t.shape[-1]) for name, t in model.output.items()}
    return Backbone(
        model=model,
        stages=stages,
        features=features,
        head_style=HeadStyle("pooled"),
        fingerprint="",
        description=dict(description),
        image_spec=ImageSpec((size, size)),
    )


def _features(image: keras.KerasTensor, found: Any, where: str) -> keras.Model:
    """A vector as it is; a map, averaged."""
    if isinstance(found, dict):
        found = found.get("default", found.get("pooled_output"))
    shaped = isinstance(found, keras.KerasTensor) and found.shape[-1:] != (None,)
    rank = len(found.shape) if shaped else 0
    if rank == 4:
        return pixels.encoder(image, found)
    if rank == 2:
        return keras.Model({"image": image}, {"pooled": found}, name="encoder")
    raise UserError(f"{where}: gives neither a vector nor a map for each picture")


def _stages(paths: Sequence[str], patterns: Sequence[str] | None, where: str) -> tuple[Stage, ...]:
    """As given, or in the order of the variables, by the part of their names up to a number.

    `block_3_expand/kernel` and `block_3_project/kernel` are of `block_3`.
    """
    if patterns is not None:
        return tuple(_given(paths, patterns, where))
    groups: dict[str, list[str]] = {}
    for path in paths:
        name = path.partition("/")[2]
        numbered = re.match(r"(?:[^/]*/)*?[^/]*?\d+(?=[_/]|$)", name)
        groups.setdefault(numbered[0] if numbered else name.partition("/")[0], []).append(path)
    return tuple(
        Stage(f"block_{i}", f"(?:{'|'.join(map(re.escape, own))})$")
        for i, own in enumerate(groups.values())
    )


def _given(paths: Sequence[str], patterns: Sequence[str], where: str) -> Sequence[Stage]:
    stages, left = [], list(paths)
    for i, pattern in enumerate(patterns):
        try:
            own = [p for p in left if re.search(pattern, p.partition("/")[2])]
        except re.error as error:
            raise UserError(
                f"model.stages: {pattern!r} is not a regular expression: {error}"
            ) from None
        if not own:
            raise UserError(f"model.stages: {pattern!r} matches no variable of {where}")
        stages.append(Stage(f"block_{i}", f"(?:{'|'.join(map(re.escape, own))})$"))
        left = [p for p in left if p not in own]
    if left:
        raise UserError(f"model.stages: no pattern matches {left[0].partition('/')[2]!r}")
    return stages


def _takes_training(saved: Any) -> bool:
    """Whether its call has an argument `training`."""
    return any(
        "training" in str(function.structured_input_signature[1])
        or any(isinstance(a, bool) for a in function.structured_input_signature[0])
        for function in getattr(saved.__call__, "concrete_functions", ())
    )


def _own_size(saved: Any) -> int | None:
    """The height and width that its call asks for, where it does."""
    for function in getattr(saved.__call__, "concrete_functions", ()):
        for spec in keras.tree.flatten(function.structured_input_signature):
            shape = getattr(spec, "shape", None)
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
