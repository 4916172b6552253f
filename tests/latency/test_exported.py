"""``clipdepth bench --exported``: an exported folder in the rounds of the torch path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.latency.schema import Audit
from tests.tiny.command_line import run, words
from tests.tiny.exported import SIDE, tower, write_relative

QUICK = ("--rounds", "8", "--separate", "none", "--preset", "fast", "--form", "eager")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    model: Any = tower()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return write_relative(tmp_path)


def test_what_depth_adds_where_both_are_exported(host: Path, exported: Path) -> None:
    done = run("bench", host, *QUICK, "--exported", exported, "--json")
    assert done.exit_code == 0, done.output
    report = Audit.model_validate_json(done.stdout)
    assert set(report.noise_percent) == {"tower", "exported"}
    figure = report.figure("exported tower with depth")
    assert (figure.scope, figure.what, figure.form) == ("exported", "depth", "onnx")
    assert [one.baseline for one in figure.added] == ["exported"]
    assert figure.peak_mib is None
    assert any(line.startswith("Added by depth where both are exp") for line in report.verdict)
    assert len(figure.seconds) == len(report.figure("tower alone").seconds) == 8


def test_without_the_tower_alone_that_is_said(host: Path, exported: Path) -> None:
    card = json.loads((exported / "depth.json").read_text())
    del card["files"]["tower.onnx"]
    (exported / "depth.json").write_text(json.dumps(card))
    done = run("bench", host, *QUICK, "--exported", exported, "--json")
    assert done.exit_code == 0, done.output
    report = Audit.model_validate_json(done.stdout)
    assert report.figure("exported tower with depth").scope == "separate"
    assert "has no tower.onnx" in report.verdict[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "224"), rf"takes pixels tensor\(float\) \['n', 3, {SIDE}, {SIDE}\], but"),
        (("--exported", "/there/is/none"), "no such file"),
    ],
)
def test_folders_that_do_not_fit(
    options: tuple[str, ...], message: str, exported: Path, tmp_path: Path
) -> None:
    given: tuple[str | Path, ...] = (*QUICK, "--random-weights", "--exported", exported, *options)
    done = run("bench", "config:vit-b-16", *given)
    assert done.exit_code == 2, done.output
    assert re.search(message, words(done.stderr)), done.stderr
