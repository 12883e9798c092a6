"""Assembly of a backbone and the head of a task into one `keras.Model`."""

import re
from collections.abc import Sequence

import keras

from tfft.config import TaskConfig
from tfft.model.train_step import Model
from tfft.spec import Backbone, Stage, Task


def assemble(backbone: Backbone, task: Task, config: TaskConfig, labels: Sequence[str]) -> Model:
    """Build the model of a run, from the inputs of the backbone to logits [B, C].

    A classification head that the checkpoint carries gives the head its first values.

    Args:
        backbone: pretrained model and its features.
        task: builds the head.
        config: section `task`.
        labels: class names in output order.
    """
    inputs = {tensor.name: tensor for tensor in backbone.model.inputs}
    head = task.head(backbone, config, labels)
    # One flat graph of the layers that the logits need. A pooler that the head does not read would
    # have no gradient, and only a flat graph can be split at the lowest trainable layer
    # (`feature_cache`).
    logits = head(backbone.model.output, inputs.get("padding_mask"))
    model = Model(inputs, logits, name=task.name)
    if backbone.head is not None:
        for variable in model.weights:
            if variable.path.startswith("head/"):
                variable.assign(backbone.head.weights[variable.path])
    return model


def stages(backbone: Backbone, model: keras.Model) -> tuple[Stage, ...]:
    """Return the stages of a model, bottom to top: those of the backbone in use, then the head.

    The head is a stage also where it has no variable.
    """
    paths = [variable.path for variable in model.weights]
    used = [s for s in backbone.stages if any(re.match(s.pattern, path) for path in paths)]
    return (*used, Stage("head", "head/"))
