"""Pictures of every kind: what they are called, what is kept of them, what is refused."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from clipdepth_plugin.data import DataConfig
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.labelling.names import SEQUENCE_FRAMES, frame_name, sequence_name
from clipdepth_plugin.labelling.pictures import Content, PictureSpec, open_pictures
from clipdepth_plugin.labelling.pictures.kinds import Options
from tests.labelling.fake import picture, save_tree


def read(*specs: PictureSpec | Path, every: int = 1) -> dict[str, Content]:
    plain = [str(one) if isinstance(one, Path) else one for one in specs]
    found = {}
    for pictures in open_pictures(plain, Options(every=every)):
        for part in range(pictures.parts):
            unread = list(pictures.part(part))
            assert pictures.length(part) in (None, len(unread))
            found.update({one.name: one.read() for one in unread})
            assert len({one.name for one in unread}) == len(unread)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = save_tree(tmp_path / "pics", ["b.png", "a.jpg", "kitchen/1.png", "kitchen/deep/2.bmp"])
    save_tree(root, [".hidden/x.png", ".x.png", "a.depth.png", "kitchen/1.agreement.png"])
    (root / "notes.txt").write_text("no picture")
    return root


FOLDER = ["pics/a", "pics/b", "pics__kitchen/1", "pics__kitchen__deep/2"]


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["pics"], FOLDER),
        (["pics/"], FOLDER),
        (["pics/*.png"], ["pics/b"]),
        (["pics/**/*.[bp][mn][gp]"], ["pics/b", "pics__kitchen/1", "pics__kitchen__deep/2"]),
        (["pics/kitchen/?.png", "pics/a.jpg"], ["kitchen/1", "pics/a"]),
        (["pics/b.png", "pics/a.jpg"], ["pics/b", "pics/a"]),
    ],
)
def test_files_folders_and_globs(
    tree: Path, monkeypatch: pytest.MonkeyPatch, specs: list[str], names: list[str]
) -> None:
    monkeypatch.chdir(tree.parent)
    assert list(read(*specs)) == names


def test_a_pattern_from_the_root_gives_names_of_no_working_directory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor, first, *rest = tree.parts
    pattern = str(Path(anchor, f"[{first[0]}]{first[1:]}", *rest, "*.png"))
    for folder in (tree, tree / "kitchen"):
        monkeypatch.chdir(folder)
        assert list(read(pattern)) == [f"{sequence_name('root', first, *rest)}/b"]


def test_linked_folders_are_read_once(tree: Path) -> None:
    (tree / "again").symlink_to(tree, target_is_directory=True)
    (tree / "linked").symlink_to(save_tree(tree.parent / "far", ["1.png"]))
    assert list(read(tree)) == [*FOLDER, "pics__linked/1"]


def test_files_are_kept_as_they_are(tree: Path) -> None:
    found = read(tree)
    for name in ("a.jpg", "b.png"):
        content = found[f"pics/{name[0]}"]
        assert content.encoded == (tree / name).read_bytes()
        assert content.suffix == name[1:]
    assert (found["pics__kitchen__deep/2"].encoded, found["pics__kitchen__deep/2"].suffix) == (
        *(None, ".png"),
    )


def test_turned_pictures_are_upright_and_stored_anew(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture(0)).save(tmp_path / "turned.jpg", exif=exif)
    (content,) = read(tmp_path).values()
    assert content.image_HW3.shape == (16, 12, 3)
    assert (content.encoded, content.suffix) == (None, ".png")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no pictures given"),
        (["gone.png"], "no such file"),
        (["*.png"], "matches no picture"),
        (["empty"], "no pictures in this folder"),
        (["pics", "other/pics"], "both would be called pics"),
        (["pics", "pics"], "both would be called pics"),
        (["pics", "pics/a.jpg"], "both would be called pics"),
        (["pics/a.jpg", "pics"], "both would be called pics"),
        (["twins"], r"a.jpg and a.png would be the same frame, a; give a glob"),
        (["hf:x"], "expected a picture"),
        (["lerobot:../x/y/z"], "neither a folder"),
        (["lerobot:s3://bucket"], "data comes from"),
        (["film.mp4"], "no such file"),
    ],
)
def test_what_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch, specs: list[str], message: str
) -> None:
    monkeypatch.chdir(tree.parent)
    (tree.parent / "empty").mkdir()
    save_tree(tree.parent, ["other/pics/1.png", "twins/a.jpg", "twins/a.png"])
    with pytest.raises(ClipDepthError, match=message):
        read(*specs)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (frame_name("img_001.v2"), "img_001.v2"),
        (frame_name("a b"), "a_b-"),
        (frame_name("a_b"), "a_b"),
        (frame_name("x.depth"), "x_depth-"),
        (frame_name(".x"), "x-"),
        (frame_name(".."), "x-"),
        (frame_name("x" * 300), "x" * 120 + "-"),
        (frame_name("日本"), "x-"),
        (sequence_name("a", "b"), "a__b"),
        (sequence_name("a__b"), "a__b-"),
        (sequence_name("a", "../b"), "a_____b-"),
        (sequence_name("film.mp4", index=SEQUENCE_FRAMES), "film.mp4__001"),
    ],
)
def test_names(made: str, expected: str) -> None:
    assert made == expected or (expected.endswith("-") and made[:-10] == expected)


def test_names_that_were_alike_stay_apart() -> None:
    frames = ["a b", "a_b", "a-b", "a/b", "a\\b", "a\nb", "日本", "本日", "", "."]
    assert len({*map(frame_name, frames)}) == len(frames)
    sequences = [("a", "b"), ("a__b",), ("a_", "b"), ("a", "_b"), ("a/b",), ("a", "b", "")]
    assert len({sequence_name(*one) for one in sequences}) == len(sequences)


def write_video(path: Path, frames: int, *, rotation: int = 0) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for index in range(frames):
            pixels_HW3 = np.full((16, 32, 3), 40 + 10 * index, np.uint8)
            pixels_HW3[:, :16] = 20  # the left half is dark
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels_HW3, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if rotation:
        turn(path, rotation)
    return path


def turn(path: Path, degrees: int) -> None:
    """Writes a turn, clockwise, into the track's matrix of an mp4 file."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    none, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    rows = {90: (none, one, minus, none), 180: (minus, none, none, minus)}[degrees]
    for place, value in zip((0, 4, 12, 16), rows, strict=True):
        content[matrix + place : matrix + place + 4] = value
    path.write_bytes(content)


def test_videos(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", 7)
    found = read(path, every=3)
    assert list(found) == [f"film.mp4/{index:06d}" for index in (0, 3, 6)]
    content = found["film.mp4/000003"]
    assert content.image_HW3.shape == (16, 32, 3)
    assert content.image_HW3[:, 20:].mean() == pytest.approx(70, abs=4)
    assert (content.encoded, content.suffix) == (None, ".jpg")
    assert list(read(str(tmp_path / "*.mp4"))) == [f"film.mp4/{index:06d}" for index in range(7)]


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    found = read(write_video(tmp_path / "film.mp4", 1, rotation=90))
    (content,) = found.values()
    assert content.image_HW3.shape == (32, 16, 3)
    assert content.image_HW3[:14].mean() < 30 < content.image_HW3[18:].mean()  # left is up


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or of a format"),
        (b"no video at all", "damaged or of a format"),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n",
            "of a format",
        ),
        (b"ffconcat version 1.0\nfile film.mp4\n", "damaged or of a format"),
    ],
)
def test_damaged_videos_and_playlists(tmp_path: Path, content: bytes, message: str) -> None:
    write_video(tmp_path / "film.mp4", 2)
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(ClipDepthError, match=message):
        read(tmp_path / "bad.mp4")


def write_tars(root: Path, count: int, each: int, *, bad: Sequence[int] = ()) -> DataConfig:
    """WebDataset shards of PNG pictures, those in ``bad`` of half a file."""
    root.mkdir(exist_ok=True)
    for shard in range(count):
        with tarfile.open(root / f"shard-{shard:02d}.tar", "w") as archive:
            for number in range(shard * each, (shard + 1) * each):
                buffer = io.BytesIO()
                Image.fromarray(picture(number, (4, 6))).save(buffer, format="PNG")
                content = buffer.getvalue()
                if number in bad:
                    content = content[: len(content) // 2]
                _add(archive, f"{number:05d}.png", content)
                _add(archive, f"{number:05d}.intrinsics.json", json.dumps([5, 5, 3, 2]).encode())
    spec = f"{root}/shard-{{00..{count - 1:02d}}}.tar"
    return DataConfig(format="webdataset", root=spec)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_webdataset(tmp_path: Path) -> None:
    found = read(write_tars(tmp_path / "tars", 2, 3))
    assert list(found) == [f"shard-{i // 3:02d}/{i:05d}" for i in range(6)]
    content = found["shard-01/00004"]
    assert content.camera == (5, 5, 3, 2)
    assert content.encoded is not None
    np.testing.assert_array_equal(content.image_HW3, picture(4, (4, 6)))


def test_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    places = [write_tars(tmp_path / one, 1, 1).root for one in ("a", "b")]
    with pytest.raises(ClipDepthError, match="two of its files are called shard-00"):
        read(DataConfig(format="webdataset", root="::".join(places)))


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    config = write_tars(tmp_path / "tars", 1, 1)
    with tarfile.open(tmp_path / "tars" / "shard-00.tar", "a") as archive:
        _add(archive, "other.png", b"x")
        _add(archive, "00000.png", b"x")
    (stream,) = open_pictures([config], Options())
    last = list(stream.part(0))[-1]
    with pytest.raises(ClipDepthError, match="is in the shard twice"):
        last.read()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "rgbd", "root": "x"}, "of format rgbd, give the folder"),
        ({"format": "webdataset", "root": "x.tar"}, "no such tar file"),
        ({"format": "webdataset", "root": "pipe:ls"}, "no such tar file"),
        (
            {"format": "webdataset", "root": "x.tar", "depth_column": "d.png"},
            "labels are made anew",
        ),
    ],
)
def test_streams_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipDepthError, match=message):
        read(DataConfig(**config))


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(picture(seed)) for seed in range(3)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "text": ["x"] * 3}, features=features)
    rows.save_to_disk(str(tmp_path / "set"))
    found = read(DataConfig(format="hf", root=str(tmp_path / "set")))
    assert list(found) == [f"set__train__00000/{number:06d}" for number in range(3)]
    np.testing.assert_array_equal(found["set__train__00000/000001"].image_HW3, picture(1))


class Rows:
    """A stand-in for ``LeRobotDataset``: two episodes of 3 and 2 rows, two cameras and depth."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        self.read: list[int] = []
        self.meta = types.SimpleNamespace(
            camera_keys=["observation.images.top", "observation.image", "observation.depth"],
            depth_keys=["observation.depth"],
            episodes=[
                {"dataset_from_index": 0, "dataset_to_index": 3},
                {"dataset_from_index": 3, "dataset_to_index": 5},
            ],
        )

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        if index == 4:
            raise RuntimeError("damaged video")
        return {name: torch.full((3, 4, 6), index / 10) for name in self.meta.camera_keys}


def test_lerobot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lerobot.datasets.lerobot_dataset"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(LeRobotDataset=Rows))
    for parent in ("lerobot", "lerobot.datasets"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    info = tmp_path / "robot" / "meta" / "info.json"
    info.parent.mkdir(parents=True)
    info.write_text('{"codebase_version": "v3.0"}')
    (pictures,) = open_pictures([f"lerobot:{tmp_path / 'robot'}"], Options(every=2))
    unread = [one for part in range(pictures.parts) for one in pictures.part(part)]
    assert [one.name for one in unread] == [
        "robot__000000__top/000000",
        "robot__000000__image/000000",
        "robot__000000__top/000002",
        "robot__000000__image/000002",
        "robot__000001__top/000000",
        "robot__000001__image/000000",
    ]
    assert pictures.length(0) == 4
    contents = [one.read() for one in unread]
    assert [int(one.image_HW3[0, 0, 0]) for one in contents] == [0, 0, 51, 51, 76, 76]
    assert contents[0].image_HW3.shape == (4, 6, 3)
    assert pictures._frames._rows.read == [0, 2, 3]  # type: ignore[attr-defined]
    (pictures,) = open_pictures([f"lerobot:{tmp_path / 'robot'}"], Options())
    with pytest.raises(ClipDepthError, match=r"row 4, .*can't be read \(RuntimeError: damaged"):
        list(pictures.part(1))[-1].read()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no LeRobot data set: it has no meta/info.json"),
        ({"info.json": "[1]"}, "codebase_version is None, expected v3.0"),
        ({"info.json": '{"codebase_version": "v2.1"}'}, "'v2.1', expected v3.0.*convert_dataset"),
        ({"info.json": "{"}, "is not valid JSON"),
    ],
)
def test_folders_that_are_no_lerobot_set_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], message: str
) -> None:
    name = "lerobot.datasets.lerobot_dataset"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(LeRobotDataset=Rows))
    for parent in ("lerobot", "lerobot.datasets"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    (tmp_path / "robot" / "meta").mkdir(parents=True)
    for file, text in files.items():
        (tmp_path / "robot" / "meta" / file).write_text(text)
    with pytest.raises(ClipDepthError, match=message):
        read(f"lerobot:{tmp_path / 'robot'}")


def test_lerobot_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(ClipDepthError, match=r'pip install "lerobot\[dataset\]", with Python 3.12'):
        read("lerobot:org/name")
