"""The progress line: its numbers, and how it is written with and without a terminal."""

import io
from types import SimpleNamespace

import pytest

from tfft.training import progress
from tfft.training.checkpoints import TrainingState
from tfft.utils import console

CLEAR_LINE = "\r\x1b[2K"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A fake clock for the callback and the console; set `clock.now`, in seconds."""
    clock = SimpleNamespace(now=100.0)
    fake_time = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", fake_time)
    monkeypatch.setattr(console, "time", fake_time)
    monkeypatch.setattr(console, "_state", {"open": False, "last": 0.0, "quiet": False})
    return clock


@pytest.fixture
def terminal(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(console, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def log_file(clock, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "sys", SimpleNamespace(stderr=stream))
    return stream


class FakeTraining:
    """A progress callback of 2 epochs of 5 steps of 16 examples, with a fake model."""

    def __init__(self, clock, step=0):
        self.clock, self.state = clock, TrainingState(step=step)
        self.report = SimpleNamespace(wait=0.0)
        self.callback = progress.Progress(self.state, 5, 10, 16, "accuracy")
        self.callback.set_model(SimpleNamespace(report=self.report))

    def finish_step(self, step, now, wait=0.0, loss=0.5):
        self.state.step, self.clock.now, self.report.wait = step, now, wait
        self.callback.on_train_batch_end(step - 1, {"loss": loss})


def test_numbers_of_the_line(clock, terminal):
    training = FakeTraining(clock)
    training.finish_step(1, now=100.0, wait=60.0)  # traces, so it is not measured
    assert terminal.getvalue() == ""
    training.finish_step(2, now=100.5, wait=0.1, loss=0.25)
    assert terminal.getvalue() == (
        f"{CLEAR_LINE}epoch 1/2  step 2/10  loss 0.2500  32 examples/s  500 ms a step"
        ", 20% waiting for input  0:04 left"
    )
    training.state.best = 0.75
    training.finish_step(6, now=104.0, wait=1.9)  # 5 steps in 4 s, 2 s of waiting
    assert terminal.getvalue().split(CLEAR_LINE)[-1] == (
        "epoch 2/2  step 6/10  loss 0.5000  best accuracy 0.7500  20 examples/s  800 ms a step"
        ", 50% waiting for input  0:03 left"
    )


def test_a_resumed_run_measures_from_its_start(clock, terminal):
    training = FakeTraining(clock, step=5)
    training.finish_step(6, now=100.0)
    training.finish_step(7, now=160.0)
    line = terminal.getvalue().split(CLEAR_LINE)[-1]
    assert line.startswith("epoch 2/2  step 7/10 ")
    assert "60,000 ms a step, 0% waiting for input" in line
    assert line.endswith("  3:00 left")


def test_a_terminal_rewrites_the_line_in_place(clock, terminal):
    training = FakeTraining(clock)
    for step in range(1, 11):
        training.finish_step(step, now=100.0 + step)
    text = terminal.getvalue()
    assert text.count(CLEAR_LINE) == 9  # each step but the first
    assert text.count("\n") == 1 and text.endswith("0:00 left\n")  # after the last step


def test_a_log_line_begins_below_the_open_progress_line(terminal):
    console.progress("step 1")
    console.log("saved")
    console.progress("step 2")
    assert terminal.getvalue() == f"{CLEAR_LINE}step 1\nsaved\n{CLEAR_LINE}step 2"


def test_without_a_terminal_lines_are_written_every_ten_seconds(clock, log_file):
    training = FakeTraining(clock)
    for step, now in enumerate((100.0, 101.0, 102.0, 110.9, 111.0, 112.0, 121.5, 122.0), 1):
        training.finish_step(step, now)
    lines = log_file.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["2/10", "5/10", "7/10"]
    assert CLEAR_LINE not in log_file.getvalue()


def test_without_a_terminal_the_last_line_is_written_in_any_case(clock, log_file):
    training = FakeTraining(clock)
    for step in (1, 2, 3, 10):
        training.finish_step(step, now=100.0 + step)
    lines = log_file.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["2/10", "10/10"]


@pytest.mark.parametrize("stream", ["terminal", "log_file"])
def test_a_quiet_worker_writes_nothing(stream, request):
    output = request.getfixturevalue(stream)
    console.quiet(True)
    console.progress("step 1", last=True)
    console.log("saved")
    assert output.getvalue() == ""
