"""Durations: their texts, and the steps that they resolve to."""

import pytest

from tfft.config import Duration, Interval


def test_durations_resolve_to_steps():
    assert Duration.parse("10%").steps(50, 200) == 20
    assert Duration.parse("2 epochs").steps(50, 200) == 100
    assert Duration.parse("1 step").steps(50, 200) == 1
    for invalid in ("10", "ten steps", 5, None, "120%"):
        with pytest.raises(ValueError):
            Duration.parse(invalid)


def test_a_wall_clock_interval_has_seconds_and_no_steps_of_its_own():
    interval = Interval.parse("2.5 minutes")
    assert interval.seconds == 150 and interval.steps(50, 200) == 200
    assert Interval.parse("2 epochs").seconds is None
    assert Interval.parse("2 epochs").steps(50, 200) == 100
    for invalid in ("0 minutes", "10 hours", "minutes"):
        with pytest.raises(ValueError):
            Interval.parse(invalid)


@pytest.mark.parametrize("text", ["100 steps", "0.5 epochs", "10%", "2.5 minutes"])
def test_a_duration_is_written_as_it_is_read(text):
    assert str(Interval.parse(text)) == text
