"""The time budget of the slow tests: tests without time are skipped, failures still fail."""

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
    timeout = None
    try:
        time.sleep(60)
    except BaseException as error:  # as libraries that run a test do
        timeout = error
    raise BaseExceptionGroup("what was run behaved differently", [ValueError("x"), timeout])

def test_late():
    pass
"""


@pytest.fixture
def run(pytester):
    """A function that runs the tests above with a number of seconds to the deadline."""
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\ntimeout = 100\n")

    def run(seconds, *arguments):
        deadline = time.time() + seconds
        options = ("-p", "tests.time_budget", f"--deadline={deadline}", *arguments)
        return pytester.runpytest_inprocess(*options)

    return run


def test_after_the_deadline_no_test_runs(run):
    result = run(-1)
    result.assert_outcomes(skipped=4)
    assert "0 ran, 4 did not: no time left" in result.outlines
    assert result.ret == 0


def test_a_failure_before_the_deadline_fails_and_a_timeout_at_it_is_skipped(run):
    start_time = time.monotonic()
    result = run(8)
    assert time.monotonic() - start_time < 30
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    result.stdout.fnmatch_lines(["ran *::test_quick", "not run *::test_long"])
    assert result.ret == 1


def test_each_file_is_the_first_one_in_some_rotation():
    items = [SimpleNamespace(path=Path(f"test_{i % 12}.py"), index=i) for i in range(36)]
    first_files = set()
    for rotate in range(30):
        order = rotated(items, rotate)
        assert sorted(item.index for item in order) == list(range(36))
        names = [item.path.name for item in order]
        assert len([1 for a, b in itertools.pairwise(names) if a != b]) == 11
        first_files.add(names[0])
    assert len(first_files) == 12
