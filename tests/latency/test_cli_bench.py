"""``clipdepth bench`` as it is typed: files, stdout, mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner, Result

from clipdepth_plugin.adapters.loading.config import BUILT_IN
from clipdepth_plugin.cli.app import app
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.schema import Audit

SHORT = ("--random-weights", "--rounds", "8", "--separate", "none", "--preset", "fast")


@pytest.fixture
def folder(make_host: Callable[[str], nn.Module], tmp_path: Path) -> str:
    """A LLaVA's config, without weights."""
    host: Any = make_host("llava")
    host.config.save_pretrained(tmp_path / "llava")
    return str(tmp_path / "llava")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_all_files_are_written(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = bench(folder, *SHORT, "--text-tokens", "4", "--output", str(out))
    assert run.exit_code == 0, run.output
    report = Audit.model_validate_json((out / "added_latency.json").read_bytes())
    assert report.host.prompt_tokens == 20
    assert report.environment.dtype == "float32"
    assert list(report.heads) == ["fast"]
    assert {figure.form for figure in report.figures} == {None, "eager", "fused"}
    markdown = (out / "added_latency.md").read_text(encoding="utf-8")
    assert all(line in markdown for line in report.verdict)
    assert (out / "added_latency.png").read_bytes()[:4] == b"\x89PNG"
    assert report.verdict[0] in run.stdout.replace("\n", " ")


def test_json_and_nothing_else_on_stdout(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise it is pytest's command line, which may have no arguments.
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/clipdepth", "bench", folder])
    run = bench(folder, *SHORT, "--scope", "tower", "--form", "eager", "--json")
    assert run.exit_code == 0, run.output
    report = Audit.model_validate(json.loads(run.stdout))
    assert {figure.scope for figure in report.figures} == {"tower", "head"}
    assert report.environment.command == ("clipdepth", "bench", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config:vit",), "no such built-in config"),
        (("config:vit-b-16", "--preset", "slow"), "preset 'slow'"),
        (("config:vit-b-16", "--form", "graph"), "CUDA graphs need CUDA"),
        (("config:vit-b-16", "--separate", "225"), "multiples of 14"),
        (("config:vit-b-16", "--device", "cuda:99"), "--device cuda:99"),
        (("config:vit-b-16", "--head", "fast", "--preset", "fast"), "as --head ./fast"),
        (("config:vit-b-16", "--preset", "fast", "--preset", "fast"), "two heads of this name"),
    ],
)
def test_mistakes_are_reported_before_anything_is_loaded(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, "vit-b-16", ("never built", lambda: pytest.fail("loaded")))
    run = bench(*arguments)
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())


def test_a_host_whose_prompt_can_not_be_made_has_its_tower_measured(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise BenchError("this model wants more than a prompt")

    monkeypatch.setattr("clipdepth_plugin.latency.subject.prefill_baseline", refused)
    monkeypatch.setattr("clipdepth_plugin.latency.subject.imitates", lambda *_: True)
    given = (folder, *SHORT, "--form", "eager")
    run = bench(*given, "--json")
    assert run.exit_code == 0, run.output
    report = Audit.model_validate(json.loads(run.stdout))
    assert {figure.scope for figure in report.figures} == {"tower", "head"}
    first, second = report.verdict[:2]
    assert first.startswith("Only the tower is measured, not the prefill: this model wants more")
    assert second.startswith("This processor has no float32 instructions and emulates them")
    assert first in run.stderr
    assert "wants more than a prompt" in bench(*given, "--scope", "prefill").stderr
    idle = bench(*given, "--text-tokens", "4")
    assert idle.exit_code == 2
    assert "--text-tokens 4: no prompt is measured" in idle.stderr


def test_a_narrow_terminal_gets_each_number_on_a_line_of_its_own(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (folder, *SHORT, "--form", "eager", "--scope", "tower")
    monkeypatch.setenv("COLUMNS", "160")
    wide = bench(*given).stdout
    assert any("p50 ms" in line and "p95 ms" in line for line in wide.splitlines())
    monkeypatch.setenv("COLUMNS", "40")
    narrow = bench(*given).stdout
    assert re.search(
        r"^tower alone\n  p50 ms: \d+\.\d\d\n  p95 ms: \d+\.\d\d$", narrow, re.MULTILINE
    )
