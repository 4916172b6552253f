"""``clipdepth train``: the config, overrides and flags on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from clipdepth_plugin.cli.app import app
from clipdepth_plugin.cli.train import TrainingReport
from clipdepth_plugin.training.progress import Progress

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns


@pytest.fixture
def file(tiny: TinyRuns) -> Path:
    path = tiny.folder / "run.yaml"
    path.write_text(yaml.safe_dump(tiny.tree("run")))
    return path


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def test_a_run_with_overrides_and_a_cache(tiny: TinyRuns, file: Path) -> None:
    overrides = ("--steps", "3", "--optimiser.lr=1e-3", "--cache.dtype", "float32")
    code, output = run(file, "--cache", *overrides[:3])
    assert code == 0, output
    assert "3 steps; the head (" in output
    assert "AbsRel 0." in output
    stored = yaml.safe_load((tiny.folder / "run" / "config.yaml").read_text())
    assert stored["steps"] == 3
    assert stored["optimiser"]["lr"] == 1e-3
    assert stored["cache"]["folder"] == str(tiny.folder / "token-cache")
    assert list((tiny.folder / "token-cache").glob("shard-*.safetensors"))
    code, output = run(file, "--cache", "--resume", *overrides[:3])
    assert code == 0, output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.lr", "1"], r"error: .*optimizer: no such field; did you mean optimiser\?"),
        (["--steps", "many"], r"error: .*steps: .*'many'"),
        (["--steps"], r"error: --steps: needs a value"),
        (["--host", "nowhere"], r"error: host 'nowhere': neither a known scheme"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_mistakes_are_one_message_and_exit_code_2(
    file: Path, words: list[str], message: str
) -> None:
    code, output = run(file, *words)
    assert code == 2
    assert re.search(message, output), output


def test_the_bar_shows_loss_metric_speed_and_time_left() -> None:
    console = Console(record=True, width=160, force_terminal=True)
    with TrainingReport(console) as bar:
        bar.doing("running the tower", 3, 10)
        bar.step(Progress(5, 20, 0, 1.25, 1e-4, 31.4, 0.1234))
    shown = console.export_text()
    assert "running the tower" in shown
    for part in ("loss 1.2500", "AbsRel 0.1234", "31.4 images/s", "5/20", "3/10"):
        assert part in shown
