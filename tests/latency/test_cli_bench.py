"""``clipdepth bench`` as it is typed: files, stdout, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner, Result

from clipdepth_plugin.cli import run_bench
from clipdepth_plugin.cli.app import app
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.hosts import BUILT_IN
from clipdepth_plugin.latency.schema import Audit, load_audit

SHORT = ("--random-weights", "--rounds", "8", "--warmup", "2", "--separate", "none")


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
    run = bench(
        folder, *SHORT, "--preset", "fast", "--sweep", "batch=1,2", "--sweep-rounds", "8",
        "--text-tokens", "4", "--output", str(out),
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    report = load_audit(out / "added_latency.json")
    assert report.host.prompt_tokens == 20
    assert report.environment.dtype == "float32"
    assert [sweep.over for sweep in report.sweeps] == ["batch"]
    assert list(report.heads) == ["fast"]
    markdown = (out / "added_latency.md").read_text(encoding="utf-8")
    assert all(line in markdown for line in report.verdict)
    assert "## Over the pictures, tower" in markdown
    assert (out / "added_latency.png").read_bytes()[:4] == b"\x89PNG"
    assert "Over the batch: Exponents over the number of pictures: tower" in run.stdout
    assert b"<svg" in (out / "added_latency.svg").read_bytes()[:500]
    assert report.verdict[0] in run.stdout.replace("\n", " ")


def test_an_impossible_sweep_is_refused_before_anything_is_timed(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_bench, "audit", lambda *_, **__: pytest.fail("timed"))
    run = bench(folder, *SHORT, "--preset", "fast", "--sweep", "levels=1,99")
    assert run.exit_code == 2
    assert "99 levels" in " ".join(run.output.split())


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_what_was_measured_is_kept_where_a_sweep_fails(
    as_json: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise BenchError("no memory left")

    monkeypatch.setattr(run_bench, "run_sweep", fails)
    more = ("--json",) if as_json else ()
    run = bench(
        folder, *SHORT, "--preset", "fast", "--form", "eager", "--scope", "tower", "--sweep",
        "batch=1,2", "--output", str(tmp_path), *more,
    )  # fmt: skip
    assert run.exit_code == 2
    assert "no memory left" in run.output
    report = load_audit(tmp_path / "added_latency.json")
    assert report.sweeps == ()
    if as_json:
        assert Audit.model_validate(json.loads(run.stdout)) == report
    else:
        assert report.verdict[0] in run.stdout.replace("\n", " ")


def test_json_and_nothing_else_on_stdout(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it is pytest's command line, which may have no arguments.
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/clipdepth", "bench", folder])
    run = bench(folder, *SHORT, "--preset", "fast", "--sweep", "none", "--scope", "tower", "--json")
    assert run.exit_code == 0, run.output
    report = Audit.model_validate(json.loads(run.stdout))
    assert {figure.scope for figure in report.figures} == {"tower", "head"}
    assert report.environment.command[1:] != ()
    assert report.environment.command == ("clipdepth", "bench", folder)
    assert "/" not in report.environment.command[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config:vit",), "no such built-in config"),
        (("config:vit-b-16", "--preset", "slow"), "preset 'slow'"),
        (("config:vit-b-16", "--form", "graph"), "CUDA graphs need CUDA"),
        (("config:vit-b-16", "--separate", "225"), "multiples of 14"),
        (("config:vit-b-16", "--sweep", "batch=1"), "two different positive numbers"),
        (("config:vit-b-16", "--device", "cuda:99"), "--device cuda:99"),
        (("config:vit-b-16", "--head", "fast", "--preset", "fast"), "write --head ./fast"),
        (("config:vit-b-16", "--preset", "fast", "--preset", "fast"), "given twice"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, "vit-b-16", ("never built", lambda: pytest.fail("loaded")))
    run = bench(*arguments)
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())
