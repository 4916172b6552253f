"""``clipdepth export``, run as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.cli import export as command
from clipdepth_plugin.exporting.verifying import BOUNDS
from clipdepth_plugin.runtime.card import Card
from tests.tiny.command_line import run, tiny_host, words
from tests.tiny.heads import small_head


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a host and a head."""
    host = tiny_host(tmp_path_factory)
    head = tmp_path_factory.mktemp("made") / "head"
    model = load_host(str(host)).model
    small_head(model, preset="fast", channels=(8, 8, 8)).save_pretrained(head)
    return host, head


def test_files_errors_and_engines(named: tuple[Path, Path], tmp_path: Path) -> None:
    host, head = named
    out = tmp_path / "out"
    given = ("--host", host, "--head", head, "-o", out)
    result = run("export", *given, "--dtype", "float32", "--opset", "18", "--tower-alone")
    assert result.exit_code == 0, result.output
    assert "trtexec --onnx=tower_depth.onnx" in words(result.output)
    card = Card.read(out / "depth.json")
    assert (card.host, card.head) == (str(host), str(head))
    assert card.files["head.onnx"].opset == 18
    alone, whole = card.files["tower.onnx"], card.files["tower_depth.onnx"]
    assert [port.name for port in alone.inputs] == ["pixel_values"]
    assert [*alone.outputs, whole.outputs[-1]] == [*whole.outputs]
    assert all(found.worst < 1e-4 for f in card.files.values() for found in f.verified.values())
    again = run("export", *given)
    assert again.exit_code == 2
    assert "holds files" in words(again.output)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--format", "tflite"), "format tflite: expected one of onnx, pt2, aoti"),
        (("--dtype", "int8"), "int8"),
        (("--tower", "nowhere"), "nowhere"),
        (("--size", "24", "32"), "can't be run on pictures of 24 x 32"),
        (("--opset", "9"), "18"),
    ],
)
def test_mistakes_are_named(
    named: tuple[Path, Path], tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    host, head = named
    out = tmp_path / "out"
    result = run("export", "--host", host, "--head", head, "-o", out, *given)
    assert result.exit_code == 2
    assert message in words(result.output)
    assert "Traceback" not in result.output
    assert not out.exists() or not list(out.iterdir())


def test_what_the_options_repeat() -> None:
    assert get_args(command._Dtype) == tuple(BOUNDS)
