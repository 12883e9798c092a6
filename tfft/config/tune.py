"""Section `tune`, and the search spaces that replace values of the config."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tfft.config.base import Section
from tfft.config.durations import Minutes


class Search(Section):
    """A search space instead of a value: `{search: loguniform, min: 1e-5, max: 1e-3}`.

    The values of a `choice` may be sections that contain search spaces, which are active where that
    value is drawn.
    """

    search: Literal["choice", "int", "logint", "uniform", "loguniform"]
    values: list[Any] | None = Field(None, min_length=1, description="choice only: the values")
    min: float | None = None
    max: float | None = None
    step: float | None = Field(None, gt=0, description="int and uniform only; default for int: 1")
    default: Any = Field(
        None, description="value of the first trial; default: the one that method: auto advises"
    )
    when: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="path of a choice -> its values for which this space is active",
        json_schema_extra={"additionalProperties": True},  # a single value needs no list
    )

    @field_validator("when", mode="before")
    @classmethod
    def _wrap_single_values(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, list) else [v] for k, v in value.items()}

    @model_validator(mode="after")
    def _check_bounds(self) -> "Search":
        if self.search == "choice":
            if self.values is None or not (self.min is self.max is self.step is None):
                raise ValueError("choice takes values, and no min, max or step")
            return self
        if self.values is not None or self.min is None or self.max is None:
            raise ValueError(f"{self.search} takes min and max, and no values")
        if self.min >= self.max:
            raise ValueError(f"min must be below max. Received: {self.min:g} and {self.max:g}")
        if self.search.startswith("log") and (self.min <= 0 or self.step is not None):
            raise ValueError(f"{self.search} takes a min above 0, and no step")
        if self.whole and any(v % 1 for v in (self.min, self.max, self.step or 0)):
            raise ValueError(f"{self.search} takes integers")
        if self.default is not None and not (
            isinstance(self.default, int | float) and self.min <= self.default <= self.max
        ):
            raise ValueError(f"default must be between min and max. Received: {self.default!r}")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return self.search in ("int", "logint")


class Halving(Section):
    """Early stopping of trials by asynchronous successive halving.

    Trials pause at `min_epochs`, at `factor` times that, and so on. The best 1 / `factor` of those
    that reached a rung continue from their checkpoint (Li 2020, "A System for Massively Parallel
    Hyperparameter Tuning", algorithm 2).
    """

    factor: int = Field(3, ge=2)
    min_epochs: int = Field(1, ge=1)


class TuneConfig(Section):
    """The hyperparameter search of `tfft tune`."""

    oracle: Literal["random", "grid", "bayesian", "hyperband"] = "random"
    trials: int | None = Field(
        None,
        ge=1,
        description="largest number of trials; default: as many as `time` allows; without `time` "
        "20, or all of grid and hyperband",
    )
    time: Minutes | None = Field(
        None,
        description="time for the measurements of the advisor and all trials, e.g. '90 minutes'; "
        "the final runs (final_seeds) take additional time",
    )
    objective: str | None = Field(
        None, description="metric of the validation split; default: train.metric"
    )
    direction: Literal["max", "min"] | None = Field(
        None, description="whether a higher or a lower metric is better; default: by the metric"
    )
    seeds: int = Field(1, ge=1, description="number of runs of a trial, whose mean is its score")
    halving: Halving | None = Field(None, description="early stopping of trials")
    factor: int = Field(
        3, ge=2, description="hyperband only: the best 1 / factor of a round continue"
    )
    advise: bool = Field(True, description="whether the first trial is what method: auto advises")
    final_seeds: int = Field(
        3,
        ge=0,
        description="number of new seeds with which the best trial is trained again and tested",
    )
    keep: int = Field(1, ge=1, description="number of best trials whose weights are kept")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the search")
    space: dict[str, Search] = Field(
        default_factory=dict, description="path -> search space, e.g. optimizer.learning_rate"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "TuneConfig":
        if self.oracle == "hyperband" and self.halving is not None:
            raise ValueError("halving: must be null with hyperband, which halves by itself")
        return self
