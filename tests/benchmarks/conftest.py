"""Shared by the benchmarks: a host, the ratios printed at the end, the environment in the JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.environment import describe_environment

_RATIOS = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def vit_b_16() -> nn.Module:
    """ViT-B/16 at 224; latency does not depend on the weights' values."""
    return load_host("config:vit-b-16").model


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


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Removes the machine's name in its network."""
    machine_info.pop("node", None)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Adds the environment, as beside every other figure."""
    command = ("pytest", *sys.argv[1:])
    output_json["environment"] = describe_environment(command).model_dump(mode="json")
