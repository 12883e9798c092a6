"""The budget of the slow tests: what no time is left for does not run, what fails fails."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.time_budget import rotated

TESTS = """
import time

def test_quick():
    pass

def test_wrong():
    assert 1 == 2

def test_long():
    cut_off = None
    try:
        time.sleep(60)
    except BaseException as error:  # as libraries that run a test do
        cut_off = error
    raise BaseExceptionGroup("what was run behaved differently", [ValueError("x"), cut_off])

def test_late():
    pass
"""


@pytest.fixture
def run(pytester):
    """Run the tests above with so many seconds left."""
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\ntimeout = 100\n")

    def run(seconds, *arguments):
        deadline = time.time() + seconds
        options = ("-p", "tests.time_budget", f"--deadline={deadline}", *arguments)
        return pytester.runpytest_inprocess(*options)

    return run


def test_what_no_time_is_left_for_does_not_run(run):
    result = run(-1)
    result.assert_outcomes(skipped=4)
    assert "0 ran, 4 did not: no time left" in result.outlines
    assert result.ret == 0


def test_a_failure_before_the_deadline_fails_and_what_it_cuts_off_does_not(run):
    began = time.monotonic()
    result = run(8)
    assert time.monotonic() - began < 30
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    result.stdout.fnmatch_lines(["ran *::test_quick", "not run *::test_long"])
    assert result.ret == 1


def test_the_starting_point_moves_over_all_files():
    items = [SimpleNamespace(path=Path(f"test_{i % 12}.py"), at=i) for i in range(36)]
    first = set()
    for rotate in range(30):
        order = rotated(items, rotate)
        assert sorted(item.at for item in order) == list(range(36))
        names = [item.path.name for item in order]
        assert len([1 for a, b in itertools.pairwise(names) if a != b]) == 11
        first.add(names[0])
    assert len(first) == 12
