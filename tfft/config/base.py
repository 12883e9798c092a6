"""The base class of the sections of the YAML."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from tfft.utils.reading import is_unicode


class Section(BaseModel):
    """Base class of a section of the YAML: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _within_bounds(self) -> "Section":
        """Check that values fit the libraries' int32 and that `dump` can write them."""
        for name, value in self:
            for scalar in _scalars(value):
                if isinstance(scalar, int) and abs(scalar) >= 2**31:
                    raise ValueError(f"`{name}` must be an integer below 2,147,483,648")
                # `allow_inf_nan` does not reach values of fields of type Any.
                if isinstance(scalar, float) and not math.isfinite(scalar):
                    raise ValueError(f"`{name}` must be a finite number. Received: {scalar}")
                if isinstance(scalar, str) and not is_unicode(scalar):
                    raise ValueError(f"`{name}` holds a lone surrogate. Received: {scalar!r}")
        return self


def _scalars(value: Any) -> Iterator[Any]:
    """Iterate over the scalars of nested lists and mappings, keys included."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _scalars(part)
    else:
        yield value
