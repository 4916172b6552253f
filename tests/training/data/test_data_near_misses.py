"""Lists, names and specs that are nearly right are read right, or refused with what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clipdepth_plugin.cli.data_spec import parse_data
from clipdepth_plugin.data import DataConfig, SampleDataset, open_dataset, open_mixture
from clipdepth_plugin.errors import ClipDepthError, DataError

if TYPE_CHECKING:
    from tests.training.data.conftest import Trees


def opened(config: DataConfig) -> SampleDataset:
    data = open_dataset(config)
    assert isinstance(data, SampleDataset)
    return data


def rewrite(config: DataConfig, content: bytes) -> Path:
    path = Path(config.root, config.files or "")
    path.write_bytes(content)
    return path


LINES = [f"bathroom/rgb_{n:05d}.jpg bathroom/sync_depth_{n:05d}.png 518.8579" for n in range(4)]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", " \t ", '" "', '","'])
def test_lists_in_every_dress(trees: Trees, coding: str, end: str, separator: str) -> None:
    config = trees.nyu()
    quote = '"' * separator.startswith('"')
    text = end.join(quote + line.replace(" ", separator) + quote for line in LINES) + end
    rewrite(config, text.encode(coding))
    data = opened(config)
    assert len(data) == 4
    assert data.name(3) == "nyu/train/bathroom/rgb_00003"
    assert data[3].intrinsics is not None


@pytest.mark.parametrize("separator", ["\t", ",", ", "])
def test_names_with_blanks(trees: Trees, separator: str) -> None:
    config = trees.nyu(count=1)
    Path(config.root, "bathroom").rename(Path(config.root, "bath room"))
    line = LINES[0].replace(" ", separator).replace("bathroom", "bath room")
    rewrite(config, line.encode())
    assert opened(config)[0].name == "nyu/train/bath room/rgb_00000"
    quoted = '"bath room/rgb_00000.jpg" "bath room/sync_depth_00000.png"'
    rewrite(config, quoted.encode())
    assert opened(config)[0].intrinsics is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a.jpg b.png c/mask.png\n", r"list\.txt:1: the focal length 'c/mask.png' is no number"),
        (b"rgb,depth,focal\n", r"list\.txt:1: the focal length 'focal'.*header"),
        (b"a.jpg\n", 'list.txt:1: expected "rgb depth focal"'),
        (b"bath room/a.jpg bath room/b.png\n", "names with blanks in quotes"),
        (b"a.jpg,b.png,518,extra,\n", "expected"),
        (b"a\0.jpg b.png\n", "null characters"),
        ("a.jpg b.png".encode("utf-16-le"), "null characters"),
        ("müll.jpg b.png".encode("latin-1"), "no text in UTF-8"),
        (b"\x89HDF\r\n\x1a\n\xff\xff", "no text in UTF-8"),
        (b"", "names no picture that has depth"),
    ],
)
def test_lists_that_are_refused(trees: Trees, content: bytes, words: str) -> None:
    config = trees.nyu()
    rewrite(config, content)
    with pytest.raises(DataError, match=words):
        open_dataset(config)


def test_upper_and_lower_case_of_names(trees: Trees) -> None:
    config = trees.nyu()
    folder = Path(config.root, "bathroom")
    (folder / "rgb_00000.jpg").rename(folder / "rgb_00000.JPG")
    (folder / "sync_depth_00001.png").rename(folder / "Sync_Depth_00001.PNG")
    assert [sample.depth_1HW.any().item() for sample in opened(config)] == [True] * 4
    kitti = trees.kitti(suffix=".JPG")
    assert len(list(opened(kitti))) == 4
    # Where two names differ in case alone only the right one is taken.
    (folder / "RGB_00000.jpg").write_bytes((folder / "rgb_00000.JPG").read_bytes())
    with pytest.raises(DataError, match=r"rgb_00000\.jpg: no such file"):
        open_dataset(config)
    rooms = trees.rgbd()
    for number, (old, new) in enumerate([(".png", ".PNG"), (".depth.png", ".Depth.PNG")]):
        path = Path(rooms.root, "train/a", f"00{number}{old}")
        path.rename(path.with_name(f"00{number}{new}"))
    assert [sample.name[-3:] for sample in opened(rooms)] == [f"00{n}" for n in range(6)]


@pytest.mark.parametrize("kind", ["rgbd", "nyu", "kitti"])
def test_missing_files_are_found_at_opening(
    trees: Trees, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: DataConfig = getattr(trees, kind)()
    monkeypatch.setenv("SETS", str(Path(config.root).parent))
    config = config.model_copy(update={"root": f"$SETS/{Path(config.root).name}"})
    files = sorted(Path(config.location()).rglob("*[0-9].png"))
    depths = [path for path in files if "depth" in str(path) and "image_02/data" not in str(path)]
    depths = depths or sorted(Path(config.location()).rglob("*.depth.png"))
    for path in depths[1:3]:
        path.unlink()
    with pytest.raises(DataError, match=r"2 of \d samples lack a file") as caught:
        open_dataset(config)
    assert "$SETS" not in str(caught.value)
    assert str(Path(config.location())) in str(caught.value)
    assert str(caught.value).count("no such file") == 2
    allowed = open_mixture([config], bad_file_limit=2)
    assert isinstance(allowed, SampleDataset)
    with pytest.raises(DataError, match="no such file"):
        allowed[1]
    assert allowed.name(0).startswith(Path(config.location()).name)
    # Only the samples that are used count.
    assert len(opened(config.model_copy(update={"limit": 1}))) == 1


def test_paths_at_which_nothing_can_be_read(trees: Trees, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    rooms, lists = trees.rgbd(), trees.nyu()
    for odd in ("loop", "pipe", "x" * 300, "a\0b"):
        path = str(tmp_path / odd)
        for config in (
            *(rooms.model_copy(update={"root": path}), rooms.model_copy(update={"split": path})),
            *(lists.model_copy(update={"files": path}), lists.model_copy(update={"root": path})),
            lists.model_copy(update={"depth_root": path}),
            DataConfig(format="nyu_mat", root=path, split="all"),
        ):
            with pytest.raises(DataError):
                open_dataset(config)
        rewrite(lists, f"{'y' * 300}.jpg {odd}.png".replace("\0", "").encode())
        with pytest.raises(ClipDepthError):
            open_dataset(lists)
    # Pictures that are pipes are named when they are drawn, not waited for.
    picture = Path(rooms.root, "train/a/000.png")
    picture.unlink()
    os.mkfifo(picture)
    with pytest.raises(ClipDepthError, match=r"000\.png: is a pipe"):
        opened(rooms)[0]


def test_a_calibration_that_is_a_pipe(trees: Trees) -> None:
    config = trees.kitti(count=1)
    (calibration,) = Path(config.root).rglob("calib_cam_to_cam.txt")
    calibration.unlink()
    os.mkfifo(calibration)
    with pytest.raises(DataError, match=r"calib_cam_to_cam\.txt: is a pipe"):
        opened(config)[0]


def test_a_folder_that_may_not_be_read(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may read everything."""
    rooms, lists = trees.rgbd(), trees.nyu()
    real = os.listdir

    def denied(folder: Path) -> list[str]:
        if Path(folder).name in ("a", "bathroom"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "listdir", denied)
    for config, name in ((rooms, "a"), (lists, "bathroom")):
        with pytest.raises(DataError, match=f"{name}: the folder can't be read .Permission denied"):
            open_dataset(config)


def test_depth_in_numpy_arrays(trees: Trees) -> None:
    config = trees.nyu(count=1)
    depth_HW = np.full((24, 32), 1500, np.float64)
    np.save(Path(config.root, "d.npy"), depth_HW)
    rewrite(config, b"bathroom/rgb_00000.jpg d.npy")
    assert float(opened(config)[0].depth_1HW.max()) == 1.5
    np.savez(Path(config.root, "d.npz"), depth_HW)
    rewrite(config, b"bathroom/rgb_00000.jpg d.npz")
    with pytest.raises(DataError, match=r"d\.npz: is a zip .*16 bits.*\.npy") as caught:
        opened(config)[0]
    assert "download" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nyu:ROOT:test", "format nyu needs files, too; write them into a YAML file"),
        ("kitti:ROOT", "format kitti needs files"),
        ("nyu_mat:a.mat:test", "needs the official splits.mat.*YAML file"),
        ("nyu_mat:a.mat:val", "train, test and all"),
        ("NYU:ROOT", "did you mean nyu:"),
        (" rgbd:ROOT", "did you mean rgbd:"),
        ("rgbd", "expected FORMAT:ROOT"),
        ("rgbd:", "expected FORMAT:ROOT"),
        ("rgbd:ROOT:", "split is empty"),
        ("rgbd::test", "root is empty"),
        ("", "expected FORMAT:ROOT"),
        (":", "expected FORMAT:ROOT"),
        ("set.yaml", "YAML or JSON file that exists"),
        ("x" * 300 + ".yaml", "YAML or JSON file that exists"),
        ("a\0b.yaml", "YAML or JSON file that exists"),
        ("FOLDER", "did you mean rgbd:"),
    ],
)
def test_data_specs_that_are_nearly_right(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_data(text.replace("FOLDER", str(tmp_path)))


def test_fields_of_a_file_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.YAML"
    for text in ("format: nyu\nroot: a\n", "root: a\n", "format: rgbd\nroot: a\nno: 1\n", "1: 2\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"set\.YAML: ") as caught:
            parse_data(str(path))
        assert "errors.pydantic.dev" not in str(caught.value)
    monkeypatch.setenv("SETS", str(tmp_path))
    (tmp_path / "with:colon").mkdir()
    assert parse_data("rgbd:$SETS/with:colon").root == "$SETS/with:colon"
    assert parse_data("rgbd:$SETS/with:colon:val").split == "val"
