"""Joins a backbone and a task's head into the `keras.Model` that is trained."""

import re
from collections.abc import Sequence

import keras

from tfft.config import TaskConfig
from tfft.model.train_step import Model
from tfft.spec import Backbone, Stage, Task


def assemble(backbone: Backbone, task: Task, config: TaskConfig, labels: Sequence[str]) -> Model:
    """Backbone and head: the backbone's inputs -> logits [B, C]."""
    inputs = {tensor.name: tensor for tensor in backbone.model.inputs}
    head = task.head(backbone, config, labels)
    # One flat graph of the layers that the logits need: a pooler that nothing reads would have no
    # gradient, and a graph can be cut where it begins to move (`prefix`).
    logits = head(backbone.model.output, inputs.get("padding_mask"))
    model = Model(inputs, logits, name=task.name)
    if backbone.head is not None:
        for variable in model.weights:
            if variable.path.startswith("head/"):
                variable.assign(backbone.head.weights[variable.path])
    return model


def stages(backbone: Backbone, model: keras.Model) -> tuple[Stage, ...]:
    """Those of the whole model: the backbone's that are part of it, then the head."""
    declared = (*backbone.stages, Stage("head", "head/"))
    paths = [variable.path for variable in model.weights]
    return tuple(s for s in declared if any(re.match(s.pattern, path) for path in paths))
