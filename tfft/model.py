"""Joins a backbone and a task's head into the `keras.Model` that is trained."""

from collections.abc import Sequence

import keras

from tfft.config import TaskConfig
from tfft.spec import Backbone, Stage, Task


def assemble(
    backbone: Backbone, task: Task, config: TaskConfig, labels: Sequence[str]
) -> keras.Model:
    """Backbone and head: `{token_ids, padding_mask, segment_ids}` [B, T] -> logits [B, C]."""
    head, feature = task.head(backbone, config, labels)
    inputs = {tensor.name: tensor for tensor in backbone.model.inputs}
    features = backbone.model(inputs)
    logits = head(features[feature], inputs["padding_mask"])
    model = keras.Model(inputs, logits, name=task.name)
    if backbone.head is not None:
        for variable in head.weights:
            variable.assign(backbone.head.weights[variable.path])
    return model


def stages(backbone: Backbone) -> tuple[Stage, ...]:
    """Those of the whole model: the backbone's, then the head."""
    return (*backbone.stages, Stage("head", "head/"))
