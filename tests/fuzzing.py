"""Almost valid values and bytes for the fuzz tests; deterministic, bounded and offline."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# Number of examples in `make test` and in `make test-slow`.
EXAMPLES = [
    pytest.param(60, id="short"),
    pytest.param(3000, id="long", marks=pytest.mark.slow),
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 1e-320]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", " ", "~x/y", "../..", "\ud800", "1e999", "auto", "null", "\x00", "é"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


def fuzz(strategy, check, examples):
    """Call `check` with values of a strategy, equal in each run.

    Args:
        strategy: a Hypothesis strategy.
        check: called with each value; raises if it is handled wrongly.
        examples: number of values.
    """
    settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(check))()


def mutated(valid):
    """Return a strategy for bytes that differ from one of `valid` in up to four places."""

    @st.composite
    def strategy(draw):
        data = bytearray(draw(st.sampled_from(valid)))
        for _ in range(draw(st.integers(1, 4))):
            # The header of a file holds its sizes and types, so change it more often.
            end = draw(st.sampled_from([64, len(data)]))
            position = draw(st.integers(0, max(0, min(end, len(data)) - 1)))
            change = draw(st.sampled_from(["set", "insert", "delete", "repeat", "cut", "join"]))
            if change == "set" and data:
                data[position] = draw(
                    st.sampled_from([0, 1, 0x22, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
                )
            elif change == "insert":
                data[position:position] = draw(st.binary(max_size=6))
            elif change == "delete":
                del data[position : position + draw(st.integers(1, 9))]
            elif change == "repeat":
                data[position:position] = data[position : position + 40] * draw(st.integers(1, 5))
            elif change == "cut":
                del data[position:]
            else:
                data += draw(st.sampled_from(valid))[position:]
        return bytes(data)

    return strategy()


def replaced(draw, value):
    """Return a copy of nested lists and mappings with one value or key changed or dropped."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        change = draw(st.sampled_from(["inside", "inside", "inside", "rename", "drop"]))
        rest = {k: v for k, v in value.items() if k != key}
        if change == "drop":
            return rest
        if change == "rename":
            return {**rest, draw(st.text(max_size=6)): value[key]}
        return {**value, key: replaced(draw, value[key])}
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], replaced(draw, value[index]), *value[index + 1 :]]
    return draw(VALUES)
