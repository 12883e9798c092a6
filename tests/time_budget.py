"""Pytest plugin: run as many tests as fit before a deadline, starting at another file each time.

    pytest -m slow --deadline=1795980000 --rotate=498883

A test that does not begin before the deadline, or is still running then, is reported as skipped
with the reason `NOT_RUN`; one that fails before it fails the session as usual. The summary lists
what ran, with its seconds, and what did not.
"""

import time

import pytest

NOT_RUN = "not run: the time budget is used up"
# Any number of multiples of the golden ratio is spread evenly over the circle, so starting points
# that move by it cover all files in the fewest sessions (Knuth, TAOCP 3, section 6.4).
GOLDEN_RATIO = 0.6180339887498949


def pytest_addoption(parser):
    group = parser.getgroup("time budget")
    group.addoption(
        "--deadline", type=float, help="Unix time in seconds at which no further test begins"
    )
    group.addoption("--rotate", type=int, help="number that selects the first test file")


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
    """Limit the test to the remaining time, before pytest-timeout reads its limit."""
    if (remaining := _remaining(item.config)) is not None and remaining > 0:
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit and limit.args else item.config.getini("timeout")
        seconds = float(seconds or "inf")  # 0 means no limit
        item.add_marker(pytest.mark.timeout(min(seconds, remaining)), append=False)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if (remaining := _remaining(item.config)) is not None and remaining <= 0:
        pytest.skip(NOT_RUN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Report a test that was stopped at the deadline as skipped."""
    report = yield
    remaining = _remaining(item.config)
    if remaining is not None and remaining < 1 and report.failed and _timed_out(call):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {NOT_RUN}")
    return report


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("deadline") is None:
        return
    skipped = terminalreporter.getreports("skipped")
    not_run = [report.nodeid for report in skipped if NOT_RUN in str(report.longrepr)]
    ran = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            ran[report.nodeid] = ran.get(report.nodeid, 0.0) + report.duration
    terminalreporter.section("time budget")
    for name, seconds in ran.items():
        terminalreporter.line(f"ran      {seconds:6.1f} s  {name}")
    for name in dict.fromkeys(not_run):
        terminalreporter.line(f"not run           {name}")
    terminalreporter.line(f"{len(ran)} ran, {len(set(not_run))} did not: no time left")


def _remaining(config):
    """Return the seconds until the deadline; None without a deadline."""
    deadline = config.getoption("deadline")
    return None if deadline is None else deadline - time.time()


def _timed_out(call):
    """Return whether a timeout stopped a test, also if a library wrapped it in another error."""
    pending = [call.excinfo.value] if call.excinfo is not None else []
    visited = set()
    while pending:
        error = pending.pop()
        if error is None or id(error) in visited:
            continue
        visited.add(id(error))
        if isinstance(error, pytest.fail.Exception) and "Timeout" in str(error):
            return True
        pending += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return False
