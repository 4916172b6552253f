"""What ``clipdepth predict`` replaces: its own files, and others only with --overwrite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from tests.tiny.command_line import run, save_pictures, tiny_host, words


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_host(tmp_path_factory)


@pytest.fixture(scope="module")
def head(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    made = DepthHead.for_host(load_host(str(host)).model, preset="fast", confidence=True)
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    save_pictures(folder, {"a.jpg": (40, 60), "b.jpg": (40, 60)})
    return folder


def foreign(path: Path) -> None:
    """A file as another program writes it."""
    if path.suffix == ".npy":
        np.save(path, np.full((40, 60), 2.5, dtype=np.float32))
    else:
        Image.fromarray(np.full((40, 60), 2500, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    "kind", ["depth.png", "colour.png", "confidence.png", "npy", "confidence.npy"]
)
def test_a_file_of_anothers_is_kept(kind: str, pictures: Path) -> None:
    truth = pictures / f"b.{kind}"
    foreign(truth)
    before = truth.read_bytes()
    # Before any work: the host is not even looked for.
    given = ("predict", pictures, "--host", "nonsense", "--head", "none", "-o", pictures)
    result = run(*given, "--npy", "--confidence")
    assert result.exit_code == 2
    shown = words(result.stderr)
    assert f"b.{kind}: not written, as it is, by predict" in shown
    assert "replace it with --overwrite" in shown
    assert truth.read_bytes() == before
    assert len(list(pictures.iterdir())) == 3


def test_files_that_are_not_asked_for_do_not_matter(host: Path, head: Path, pictures: Path) -> None:
    for kind in ("npy", "confidence.png"):
        foreign(pictures / f"a.{kind}")
    result = run("predict", pictures, "--host", host, "--head", head, "-o", pictures)
    assert result.exit_code == 0, result.output


def test_ones_own_files_are_replaced_without_asking(host: Path, head: Path, pictures: Path) -> None:
    given = ("predict", pictures, "--host", host, "--head", head, "-o", pictures)
    for options in ((), ("--npy", "--confidence"), ("--npy", "--confidence")):
        result = run(*given, *options)
        assert result.exit_code == 0, result.output
    # An array that is not the picture's is somebody's own.
    foreign(pictures / "a.npy")
    foreign(pictures / "b.npy")
    result = run(*given, "--npy")
    assert result.exit_code == 2
    assert "a.npy (and 1 more such files): not written" in words(result.stderr)


def test_overwrite_replaces_whatever_there_is(host: Path, head: Path, pictures: Path) -> None:
    (pictures / "a.depth.png").write_bytes(b"no picture")
    given = ("predict", pictures, "--host", host, "--head", head, "-o", pictures)
    assert run(*given).exit_code == 2
    for options in (("--overwrite",), ()):
        result = run(*given, *options)
        assert result.exit_code == 0, result.output
