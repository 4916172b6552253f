"""Ratios that benchmarks measure are printed at the end, beside pytest-benchmark's own table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_RATIOS = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the summary."""
    return request.config.stash.setdefault(_RATIOS, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(_RATIOS, [])
    if lines:
        terminalreporter.section("ratios, each from one interleaved run")
        for line in lines:
            terminalreporter.write_line(line)
