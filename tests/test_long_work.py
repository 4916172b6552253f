"""Long work without a terminal: a line a minute with count, rate and time left."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from clipdepth_plugin.cli import long_work
from clipdepth_plugin.cli.console import bar
from clipdepth_plugin.cli.long_work import LongWork
from clipdepth_plugin.cli.train import TrainingReport
from clipdepth_plugin.training.progress import Progress


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""
    now = [1000.0]

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(long_work, "monotonic", lambda: now[0])
    return pass_by


def log() -> Console:
    return Console(file=io.StringIO(), width=40, soft_wrap=True)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_a_minute_and_one_at_the_end(wait: Callable[[float], None]) -> None:
    console = log()
    with bar(console, "evaluating", 200) as advance:
        for _ in range(200):
            wait(1.0)
            advance(1)
    assert lines(console) == [
        "evaluating: 60 of 200, 1 a second, 0:02:20 left",
        "evaluating: 120 of 200, 1 a second, 0:01:20 left",
        "evaluating: 180 of 200, 1 a second, 0:00:20 left",
        "evaluating: 200 of 200, 1 a second, 0:00:00 left",
    ]


def test_short_work_says_nothing(wait: Callable[[float], None]) -> None:
    console = log()
    with bar(console, "depth", 10) as advance:
        for _ in range(10):
            wait(2.0)
            advance(1)
    with bar(console, "depth", 1, shown=False) as advance:
        wait(100.0)
        advance(1)
    assert lines(console) == []


def test_work_of_unknown_length_slow_work_and_work_that_begins_again(
    wait: Callable[[float], None],
) -> None:
    console = log()
    with bar(console, "probing", None) as advance:
        wait(30.0)
        advance(1)
        wait(60.0)
        advance(1)
        wait(60.0)
        advance(1, 4)
    with LongWork(console) as work:
        for _ in range(2):
            work.at("validation", 1, 3)
            wait(90.0)
            work.at("validation", 2, 3)
    assert lines(console) == [
        "probing: 2, 1.33 a minute",
        "probing: 3 of 4, 1.2 a minute, 0:00:50 left",
        "validation: 2 of 3, 0.667 a minute, 0:01:30 left",
        "validation: 2 of 3, 0.667 a minute, 0:01:30 left",
    ]


def test_a_resumed_training_run_counts_its_rate_from_where_it_goes_on(
    wait: Callable[[float], None],
) -> None:
    console = log()
    with TrainingReport(console) as report:
        for step in range(500, 562):
            report.step(Progress(step, 1000, 0, 1.25, 1e-4, 31.4, 0.125))
            wait(1.0)
    assert lines(console) == [
        "steps: 560 of 1000, 1 a second, 0:07:20 left, loss 1.2500  AbsRel 0.1250  31.4 images/s"
    ]
