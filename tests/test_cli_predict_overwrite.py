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
def test_a_file_of_anothers_is_kept(kind: str, head: Path, pictures: Path) -> None:
    truth = pictures / f"b.{kind}"
    foreign(truth)
    before = truth.read_bytes()
    # Before any work: the host is not even looked for.
    given = ("predict", pictures, "--host", "nonsense", "--head", head, "-o", pictures)
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
    # An array without our note is somebody's own.
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


@pytest.mark.parametrize("last", [1, 4])
def test_a_run_that_was_interrupted_while_replacing_its_own_can_be_run_again(
    host: Path,
    head: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: int,
) -> None:
    """Wherever among the files of a picture it ended."""
    loaded = DepthHead.from_pretrained(head)
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.mul_(1.5)
    loaded.save_pretrained(tmp_path / "other")
    given = ("predict", pictures, "--host", host, "-o", pictures, "--npy", "--confidence")
    assert run(*given, "--head", head).exit_code == 0
    done: list[Path] = []
    whole = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(target)
        return whole(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        assert run(*given, "--head", tmp_path / "other").exit_code != 0
    assert len(done) == last
    result = run(*given, "--head", tmp_path / "other")
    assert result.exit_code == 0, result.output


def test_a_picture_too_large_is_named_and_the_others_are_done(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    Image.new("L", (60, 41)).save(pictures / "large.png")
    given = ("predict", pictures, "--host", host, "--head", head, "-o", tmp_path / "out")
    result = run(*given, "--max-pixels", str(60 * 40))
    assert result.exit_code == 1, result.output
    assert "large.png: its pixels, 60 x 41, are more than 2400" in words(result.stderr)
    assert len(list((tmp_path / "out").glob("*.depth.png"))) == 2
    assert run(*given).exit_code == 0
