"""The section `tune` and the search spaces that stand in place of values."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tfft.config.base import Minutes, Section


class Search(Section):
    """A search space in place of a value: `{search: loguniform, min: 1e-5, max: 1e-3}`.

    The values of a `choice` may be sections with search spaces of their own, which count where that
    value is chosen.
    """

    search: Literal["choice", "int", "logint", "uniform", "loguniform"]
    values: list[Any] | None = Field(None, min_length=1, description="of a choice")
    min: float | None = None
    max: float | None = None
    step: float | None = Field(None, gt=0, description="of int and uniform; default of int: 1")
    default: Any = Field(None, description="tried first; default: what method: auto would take")
    when: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="path of a choice -> its values for which this one counts",
        json_schema_extra={"additionalProperties": True},  # one value needs no list
    )

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, list) else [v] for k, v in value.items()}

    @model_validator(mode="after")
    def _whole(self) -> "Search":
        if self.search == "choice":
            if self.values is None or not (self.min is self.max is self.step is None):
                raise ValueError("choice takes values, and no min, max or step")
            return self
        if self.values is not None or self.min is None or self.max is None:
            raise ValueError(f"{self.search} takes min and max, and no values")
        if self.min >= self.max:
            raise ValueError(f"min must be below max; received {self.min:g} and {self.max:g}")
        if self.search.startswith("log") and (self.min <= 0 or self.step is not None):
            raise ValueError(f"{self.search} takes a min above 0, and no step")
        if self.whole and any(v % 1 for v in (self.min, self.max, self.step or 0)):
            raise ValueError(f"{self.search} takes whole numbers")
        if self.default is not None and not (
            isinstance(self.default, int | float) and self.min <= self.default <= self.max
        ):
            raise ValueError(f"default must lie between min and max; received {self.default!r}")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.search in ("int", "logint")


class Halving(Section):
    """Trials that are behind are paused at `min_epochs`, `factor` times that, and so on.

    Asynchronous successive halving (Li 2020, "A System for Massively Parallel Hyperparameter
    Tuning", algorithm 2): the best 1 / `factor` of those that came as far go on from their
    checkpoint.
    """

    factor: int = Field(3, ge=2)
    min_epochs: int = Field(1, ge=1)


class TuneConfig(Section):
    """What `tfft tune` tries, how often and how long."""

    oracle: Literal["random", "grid", "bayesian", "hyperband"] = "random"
    trials: int | None = Field(
        None,
        ge=1,
        description="at most; default: all that the time allows, without one 20, or of grid and "
        "hyperband all they have",
    )
    time: Minutes | None = Field(
        None,
        description="for the advisor's look and all trials: '90 minutes'; the runs on fresh seeds "
        "come on top",
    )
    objective: str | None = Field(
        None, description="figure of the validation split; default: train.metric"
    )
    direction: Literal["max", "min"] | None = Field(
        None, description="default: the objective's own"
    )
    seeds: int = Field(1, ge=1, description="runs a trial, whose mean counts")
    halving: Halving | None = Field(None, description="early stopping of what is behind")
    factor: int = Field(3, ge=2, description="of hyperband: what is left of a round")
    advise: bool = Field(True, description="the first trial is what method: auto would take")
    final_seeds: int = Field(
        3, ge=0, description="the best is trained again with so many fresh seeds, and tested"
    )
    keep: int = Field(1, ge=1, description="trials whose weights are kept: the best")
    seed: int = Field(0, ge=0, lt=2**31, description="of what is drawn")
    space: dict[str, Search] = Field(
        default_factory=dict, description="path -> search space, e.g. optimizer.learning_rate"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "TuneConfig":
        if self.oracle == "hyperband" and self.halving is not None:
            raise ValueError("halving: hyperband halves by itself")
        return self
