"""Pytest plugin: run as many tests as fit before a deadline, beginning somewhere else each time.

    pytest -m slow --deadline=1795980000 --rotate=498883

A test that does not begin before the deadline, or is still running then, is reported as skipped
with the reason `NOT_RUN`; one that fails before it fails the session as usual. The summary lists
what ran, with its seconds, and what did not.
"""

import time

import pytest

NOT_RUN = "not run: the time budget is used up"
# Multiples of the golden ratio spread evenly over the circle, however many are taken: starting
# points that move by it cover all files in the fewest sessions (Knuth, TAOCP 3, section 6.4).
GOLDEN_RATIO = 0.6180339887498949


def pytest_addoption(parser):
    group = parser.getgroup("time budget")
    group.addoption(
        "--deadline", type=float, help="Unix time in seconds at which no further test begins"
    )
    group.addoption("--rotate", type=int, help="number from which the first test file follows")


@pytest.hookimpl(trylast=True)  # of the tests that `-m` selected
def pytest_collection_modifyitems(config, items):
    if (rotate := config.getoption("rotate")) is not None:
        items[:] = rotated(items, rotate)


def rotated(items, rotate):
    """Return the items with whole files moved from the front to the end."""
    files = list(dict.fromkeys(item.path for item in items))
    start = int(rotate * GOLDEN_RATIO % 1 * len(files))
    rank = {path: index for index, path in enumerate(files[start:] + files[:start])}
    return sorted(items, key=lambda item: rank[item.path])


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Give the test no more time than is left, before pytest-timeout reads its limit."""
    if (left := _left(item.config)) is not None and left > 0:
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit and limit.args else item.config.getini("timeout")
        seconds = float(seconds or "inf")  # 0 stands for no limit
        item.add_marker(pytest.mark.timeout(min(seconds, left)), append=False)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if (left := _left(item.config)) is not None and left <= 0:
        pytest.skip(NOT_RUN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Report a test that the deadline cut off as one that did not run."""
    report = yield
    left = _left(item.config)
    if left is not None and left < 1 and report.failed and _timed_out(call):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {NOT_RUN}")
    return report


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("deadline") is None:
        return
    skipped = terminalreporter.getreports("skipped")
    left_out = [report.nodeid for report in skipped if NOT_RUN in str(report.longrepr)]
    ran = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            ran[report.nodeid] = ran.get(report.nodeid, 0.0) + report.duration
    terminalreporter.section("time budget")
    for name, seconds in ran.items():
        terminalreporter.line(f"ran      {seconds:6.1f} s  {name}")
    for name in dict.fromkeys(left_out):
        terminalreporter.line(f"not run           {name}")
    terminalreporter.line(f"{len(ran)} ran, {len(set(left_out))} did not: no time left")


def _left(config):
    """Return the seconds until the deadline, None where there is none."""
    deadline = config.getoption("deadline")
    return None if deadline is None else deadline - time.time()


def _timed_out(call):
    """Whether a test was cut off, also where the library that ran it raised its own error then."""
    pending = [call.excinfo.value] if call.excinfo is not None else []
    seen = set()
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, pytest.fail.Exception) and "Timeout" in str(error):
            return True
        pending += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return False
