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
    """Builds and fits a config's model with values that a KerasTuner tuner chose.

        tuner = keras_tuner.RandomSearch(
            tfft.search.HyperModel("search.yaml"),
            objective=keras_tuner.Objective("val_accuracy", "max"),
            max_trials=10,
        )
        tuner.search()

    The data are the config's; the objective is `val_` and any figure of the task, computed on the
    validation split after each epoch. Hyperband's epochs and the tuner's callbacks count. `tfft
    tune` does more: a process a trial, resumption, fresh seeds. Methods that train in phases
    (`gradual`, `lp_ft`) are for it alone.

    Args:
        config: a YAML file, or its content as nested mappings, with search spaces.

    Raises:
        UserError: with one line for each mistake.
    """

    def __init__(self, config: str | Path | Mapping[str, Any]):
        super().__init__(name="tfft", tunable=True)
        given = isinstance(config, Mapping)
        self.space = Space(config, "config") if given else Space(read(config), str(config))
        self._built: dict[int, tuple[Any, InputPipeline]] = {}

    def build(self, hp: keras_tuner.HyperParameters) -> Model:
        """The compiled model for the values that `hp` holds; registers the space in it."""
        values = self.space.ask(hp)
        config = self.space.config(values)
        result, feed = self._prepared(config)
        model = result.model
        self._built = {id(model): (result, feed)}  # one at a time stays in memory
        return model

    def built(self, model: Model) -> tuple[Any, InputPipeline]:
        """The run and the rows of the model that was built last.

        Raises:
            UserError: another was built since.
        """
        if id(model) not in self._built:
            raise UserError("HyperModel: another model was built since; build this one again")
        return self._built[id(model)]

    def fit(
        self, hp: keras_tuner.HyperParameters, model: Model, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Train on the config's rows; `epochs`, `initial_epoch`, `callbacks` and `verbose` are the
        tuner's."""
        result, feed = self.built(model)
        plan = feed.plan
        if args or {"x", "y", "validation_data"} & set(kwargs):
            raise UserError("HyperModel: the data are those of the config; give search() none")
        first = kwargs.pop("initial_epoch", 0)
        epochs = min(kwargs.pop("epochs", None) or feed.train.epochs, feed.train.epochs)
        kwargs.pop("shuffle", None)
        figures = _Figures(result, feed)
        history: keras.callbacks.History = model.fit(
            feed.dataset(first * plan.per_epoch),
            steps_per_epoch=plan.per_epoch,
            initial_epoch=first,
            epochs=epochs,
            shuffle=False,
            callbacks=[figures, *kwargs.pop("callbacks", [])],
            **kwargs,
        )
        return history

    def _prepared(self, config: Config) -> tuple[Any, InputPipeline]:
        strategy = strategies.setup(
            config.distribute, config.train.seed, config.train.deterministic
        )
        with strategy.scope():
            result, data, plan, course = setup.prepare(config, Path("runs"))
        if len(course.phases) > 1:
            raise UserError(
                f"HyperModel: method {config.method.name} trains in phases, which Keras' fit does "
                "not; use tfft tune"
            )
        if data.validation is None:
            raise UserError("HyperModel: data.validation: a search needs a validation split")
        masks.set_trainable(result.model, course.mask)
        return result, InputPipeline(result, data, plan)


class _Figures(keras.callbacks.Callback):
    """Puts the task's figures of the validation split into the logs; must stand first."""

    def __init__(self, result: Any, feed: InputPipeline):
        super().__init__()
        self._result, self._feed = result, feed

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """See the class."""
        with optimizers.averaged(self._result.model):
            found = best_checkpoint.validation_metrics(self._result, self._feed)
        logs.update({f"val_{name}": float(np.asarray(value)) for name, value in found.items()})
