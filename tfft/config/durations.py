"""Durations in the YAML: `100 steps`, `2 epochs`, `10%` and `10 minutes`, resolved to steps."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

MAX_VALUE = 10**12  # of any unit
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*$")


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit, resolved to steps once the data is known.

    In YAML: `100 steps`, `0.5 epochs`, `10%` (of the whole training).

    Attributes:
        value: the number.
        unit: `steps`, `epochs` or `%`.
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        """Parse `100 steps`, `2 epochs` or `10%`.

        Raises:
            ValueError: the text is anything else.
        """
        # Defaults are validated too.
        if isinstance(text, cls):
            return text
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("must be a number with its unit: '100 steps', '1 epochs' or '10%'")
        number, unit = match.groups()
        if float(number) >= MAX_VALUE:
            raise ValueError(f"must be below {MAX_VALUE:,}")
        unit = {"step": "steps", "epoch": "epochs"}.get(unit, unit)
        if unit == "%" and float(number) > 100:
            raise ValueError("must be at most 100%")
        return cls(float(number), unit)

    def steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the number of optimizer steps, rounded to the nearest integer."""
        factor = {"steps": 1, "epochs": steps_per_epoch, "%": total_steps / 100}[self.unit]
        return round(self.value * factor)

    def __str__(self) -> str:
        number = f"{Decimal(repr(self.value)):f}".removesuffix(".0")  # exact, without an exponent
        return f"{number}{'%' if self.unit == '%' else ' ' + self.unit}"

    @classmethod
    # pydantic calls it for fields of this type: parse, require an instance, write as text.
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            cls.parse,
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": _DURATION.pattern, "examples": ["10%", "100 steps"]}


_MINUTES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:minutes?|min)\s*$")


@dataclass(frozen=True)
class Interval(Duration):
    """A `Duration`, or a wall-clock time such as `10 minutes` (unit `minutes`)."""

    @classmethod
    def parse(cls, text: Any) -> "Interval":
        """Parse what `Duration` parses, or a number of minutes."""
        if isinstance(text, cls):
            return text
        if match := _MINUTES.match(text) if isinstance(text, str) else None:
            if not 0 < float(match[1]) < MAX_VALUE:
                raise ValueError(f"must be more than 0 minutes, and below {MAX_VALUE:,}")
            return cls(float(match[1]), "minutes")
        try:
            duration = Duration.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or '10 minutes'") from None
        return cls(duration.value, duration.unit)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time in seconds; None if the unit is another."""
        return 60 * self.value if self.unit == "minutes" else None

    def steps(self, steps_per_epoch: int, total_steps: int) -> int:
        """Return the number of steps; `total_steps` for a wall-clock time."""
        if self.unit == "minutes":
            return total_steps
        return super().steps(steps_per_epoch, total_steps)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: Any) -> dict[str, Any]:
        pattern = f"{_DURATION.pattern}|{_MINUTES.pattern}"
        return {"type": "string", "pattern": pattern, "examples": ["100 steps", "10 minutes"]}


def _require_minutes(value: Interval) -> Interval:
    if value.seconds is None:
        raise ValueError("must be minutes: '90 minutes'")
    return value


Minutes = Annotated[Interval, AfterValidator(_require_minutes)]  # a wall-clock time
