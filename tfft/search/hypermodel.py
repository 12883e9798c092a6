"""A config with search spaces as a model builder for KerasTuner's own tuners."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np

from tfft.config import Config, read
from tfft.distribute import strategies
from tfft.model import Model, masks
from tfft.search.space import Space
from tfft.training import best_checkpoint, optimizers, setup
from tfft.training.input_pipeline import InputPipeline
from tfft.utils.errors import UserError


class HyperModel(keras_tuner.HyperModel):
    """A KerasTuner hypermodel that builds and fits the model of a config.

        tuner = keras_tuner.RandomSearch(
            tfft.search.HyperModel("search.yaml"),
            objective=keras_tuner.Objective("val_accuracy", "max"),
            max_trials=10,
        )
        tuner.search()

    The data come from the config. The objective is `val_` and the name of any metric of the task,
    computed on the validation split after each epoch. Hyperband's epochs and the tuner's callbacks
    are honoured. `tfft tune` does more: it runs each trial in a separate process, resumes, and
    reports scores on fresh seeds. It is required for methods that train in phases (`gradual`,
    `lp_ft`).

    Args:
        config: path of a YAML file with search spaces, or its content as nested mappings.

    Raises:
        UserError: the config has mistakes; the message has one line for each.
    """

    def __init__(self, config: str | Path | Mapping[str, Any]):
        super().__init__(name="tfft", tunable=True)
        is_mapping = isinstance(config, Mapping)
        self.space = Space(config, "config") if is_mapping else Space(read(config), str(config))
        self._built: dict[int, tuple[Any, InputPipeline]] = {}

    def build(self, hp: keras_tuner.HyperParameters) -> Model:
        """Return the compiled model for the values in `hp`; register the search space in `hp`."""
        values = self.space.register(hp)
        config = self.space.config(values)
        result, pipeline = self._prepare(config)
        model = result.model
        self._built = {id(model): (result, pipeline)}  # only the newest model stays in memory
        return model

    def built(self, model: Model) -> tuple[Any, InputPipeline]:
        """Return the run and the input pipeline of the model that was built last.

        Raises:
            UserError: `model` is not the model that was built last.
        """
        if id(model) not in self._built:
            raise UserError("HyperModel: another model was built since; build this model again")
        return self._built[id(model)]

    def fit(
        self, hp: keras_tuner.HyperParameters, model: Model, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Train on the rows of the config and return the history.

        The tuner sets `epochs`, `initial_epoch`, `callbacks` and `verbose`.

        Raises:
            UserError: data are passed, or another model was built since.
        """
        result, pipeline = self.built(model)
        plan = pipeline.plan
        if args or {"x", "y", "validation_data"} & set(kwargs):
            raise UserError("HyperModel: the data come from the config; call search() without data")
        initial_epoch = kwargs.pop("initial_epoch", 0)
        # Hyperband asks for fewer epochs; the learning-rate schedule has those of the config.
        epochs = min(kwargs.pop("epochs", None) or pipeline.train.epochs, pipeline.train.epochs)
        kwargs.pop("shuffle", None)  # the input pipeline shuffles
        validation_metrics = _ValidationMetrics(result, pipeline)
        history: keras.callbacks.History = model.fit(
            pipeline.dataset(initial_epoch * plan.per_epoch),
            steps_per_epoch=plan.per_epoch,
            initial_epoch=initial_epoch,
            epochs=epochs,
            shuffle=False,
            callbacks=[validation_metrics, *kwargs.pop("callbacks", [])],
            **kwargs,
        )
        return history

    def _prepare(self, config: Config) -> tuple[Any, InputPipeline]:
        strategy = strategies.setup(
            config.distribute, config.train.seed, config.train.deterministic
        )
        with strategy.scope():
            result, data, plan, schedule = setup.prepare(config, Path("runs"))
        # keras.Model.fit knows one phase with one mask.
        if len(schedule.phases) > 1:
            raise UserError(
                f"HyperModel: method {config.method.name} trains in phases, which keras.Model.fit "
                "does not support; use tfft tune"
            )
        if data.validation is None:
            raise UserError("HyperModel: data.validation: a search needs a validation split")
        masks.set_trainable(result.model, schedule.mask)
        return result, InputPipeline(result, data, plan)


class _ValidationMetrics(keras.callbacks.Callback):
    """Adds the metrics of the validation split to the logs of each epoch.

    Must be the first callback: later ones, such as the tuner's, read the metrics from the logs.
    """

    def __init__(self, result: Any, pipeline: InputPipeline):
        super().__init__()
        self._result, self._pipeline = result, pipeline

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Evaluate the validation split with the averaged weights and extend `logs`."""
        with optimizers.averaged(self._result.model):
            metrics = best_checkpoint.validation_metrics(self._result, self._pipeline)
        logs.update({f"val_{name}": float(np.asarray(value)) for name, value in metrics.items()})
