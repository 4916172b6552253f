"""What the page of ``clipdepth app`` shows, without a browser: see test_app_browser.py."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import ClipDepthError, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.app.model import DepthModel, camera_of, focal_length
from clipdepth_plugin.app.session import MOST_FRAMES, Session, Sessions
from clipdepth_plugin.cli.app_page import renderer
from clipdepth_plugin.errors import HeadMismatchError, ImageError, NoDepthError
from clipdepth_plugin.files.videos import Frame, Video
from clipdepth_plugin.geometry import depth_to_points
from clipdepth_plugin.plugin.pictures import PictureDepth
from tests.tiny.app import CANONICAL, SIZE, film, picture
from tests.tiny.command_line import run, tiny_host, words
from tests.tiny.depth_png import read_depth_png
from tests.tiny.heads import small_head


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_host(str(tiny_host(tmp_path_factory)))


def model_of(host: Any, **options: Any) -> DepthModel:
    head = small_head(host.model, **options)
    return DepthModel("tiny", host.model, head, host.preprocessing)


@pytest.fixture(scope="module")
def model(host: Any) -> DepthModel:
    return model_of(host, **CANONICAL)


@pytest.fixture
def session(model: DepthModel, tmp_path: Path) -> Session:
    return Session(model, renderer(model), tmp_path)


@pytest.mark.parametrize("canonical", [True, False])
def test_depth_is_that_of_the_library(host: Any, canonical: bool, tmp_path: Path) -> None:
    head = small_head(host.model, **(CANONICAL if canonical else {}))
    model = DepthModel("tiny", host.model, head, host.preprocessing)
    image = Image.open(picture(tmp_path / "a.png"))
    with attach(host.model, head, processor=host.preprocessing) as plugin:
        depth_of = PictureDepth(plugin)
        for focal in (None, 50.0):
            (wanted_CHW,) = depth_of([image], focal_px=focal if canonical else None)
            found = model(image, focal)
            np.testing.assert_array_equal(found.metres_HW, wanted_CHW[0].numpy())
            assert (found.confidence_HW is not None) == canonical
            assert found.cost.tower > 0
            assert found.cost.depth > 0


def test_the_heads_own_lens_changes_nothing(model: DepthModel, tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "a.png"))
    own, alone_HW = model.own_focal(image), model(image, None).metres_HW
    np.testing.assert_allclose(model(image, own).metres_HW, alone_HW, rtol=1e-6)
    np.testing.assert_allclose(model(image, 2 * own).metres_HW, 2 * alone_HW, rtol=1e-6)


def test_relative_depth_is_refused(host: Any) -> None:
    with pytest.raises(HeadMismatchError, match="clipdepth predict"):
        model_of(host, metric=False)


def test_points_are_measured_in_space(session: Session, tmp_path: Path) -> None:
    session.open_picture(picture(tmp_path / "a.png"))
    session.turn_lens(70)
    first, second = (5, 7), (60, 40)
    session.click(first)
    session.click((SIZE[1], 3))  # on the scale
    session.click((-1, 3))
    session.click(second)
    shown = session.shown
    depth_1HW = torch.from_numpy(shown.depth.metres_HW)[None]
    points_HW3 = depth_to_points(depth_1HW, camera_of(focal_length(70, shown.image), shown.image))
    wanted = math.dist(*(points_HW3[y, x].tolist() for x, y in (first, second)))
    assert shown.length(session.points) == pytest.approx(wanted, rel=1e-5)
    metres = depth_1HW[0, 7, 5].item()
    line = shown.points_line(session.points)
    assert line.startswith(f"(5, 7): {metres:.3f} m; ")
    assert line.endswith(f"distance {wanted:.3f} m")
    session.click((1, 1))
    assert session.points == [(1, 1)]


def test_the_lens_says_where_it_is_from(session: Session, tmp_path: Path) -> None:
    session.open_picture(picture(tmp_path / "a.png"))
    assert "assumed: that of the head; depth is 1.000 times" in session.shown.lens_line()
    session.turn_lens(2 * math.degrees(math.atan(32 / (2 * session.shown.focal_px))))
    assert "as set here; depth is 2.000 times" in session.shown.lens_line()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 50  # FocalLengthIn35mmFilm
    session.open_picture(picture(tmp_path / "b.jpg", exif=exif))
    assert session.shown.focal_px == pytest.approx(50 * 80 / 43.27, rel=0.01)  # by the diagonal
    assert "as its EXIF says" in session.shown.lens_line()


def test_a_head_without_a_lens_says_so(host: Any, tmp_path: Path) -> None:
    model = model_of(host)
    session = Session(model, renderer(model), tmp_path)
    session.open_picture(picture(tmp_path / "a.png"))
    before_HW = session.shown.depth.metres_HW
    session.turn_lens(30)
    assert "it changes lengths and the 3D view, not depth" in session.shown.lens_line()
    np.testing.assert_array_equal(session.shown.depth.metres_HW, before_HW)
    assert session.shown.confidence_picture() is None


def test_files_hold_what_is_shown(session: Session, tmp_path: Path) -> None:
    session.open_picture(picture(tmp_path / "a.png"))
    metres_HW = session.shown.depth.metres_HW
    png, npy, ply, glb = session.write_files()
    assert [path.name for path in (png, npy, ply, glb)] == [
        *("a.depth.png", "a.npy", "a.ply", "a.glb")
    ]
    np.testing.assert_allclose(read_depth_png(png), metres_HW, atol=0.5001e-3)
    np.testing.assert_array_equal(np.load(npy), metres_HW)
    assert ply.read_bytes().startswith(b"ply\n")
    assert glb.read_bytes().startswith(b"glTF")


def test_the_pointer_reads_millimetres(session: Session, tmp_path: Path) -> None:
    session.open_picture(picture(tmp_path / "a.png"))
    image, step = session.shown.pointer_picture()
    values_HW = np.asarray(image).astype(int) @ [65536, 256, 1]
    assert step == 1
    np.testing.assert_array_equal(values_HW, np.rint(1e3 * session.shown.depth.metres_HW))


def test_a_broken_file_leaves_nothing_shown(session: Session, tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png").read_bytes()
    broken = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": whole[: len(whole) // 2],
        "page.html": b"<html>",
    }
    one_colour = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), "grey").save(one_colour)
    Image.new("1", (4097, 4096)).save(tmp_path / "large.png")
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    for name in (*broken, "grey.png", "large.png"):
        session.open_picture(picture(tmp_path / "a.png"))
        with pytest.raises(ClipDepthError) as caught:
            session.open_picture(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
        assert session.is_empty
        with pytest.raises(NoDepthError, match="no picture yet"):
            session.click((1, 1))
    (tmp_path / "film.mkv").write_bytes(film(tmp_path / "good.mkv").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"^film\.mkv"):
        session.open_video(tmp_path / "film.mkv")
    session.open_picture(picture(tmp_path / "a.png"))  # the same file once more
    with pytest.raises(NoDepthError, match="no video yet"):
        session.show_frame(0)


def test_a_video_is_shown_frame_by_frame_and_beside_its_depth(
    session: Session, tmp_path: Path
) -> None:
    path = film(tmp_path / "film.mkv")
    with Video(path) as video:
        frames = [one.image_HW3 for one in video.items() if isinstance(one, Frame)]
    assert session.open_video(path) == pytest.approx(1.2)
    for seconds, number in ((0, 0), (0.5, 5), (9, 11)):
        session.show_frame(seconds)
        np.testing.assert_array_equal(np.asarray(session.shown.image), frames[number])
    session.turn_lens(50)
    session.show_frame(0)
    assert "as set here" in session.shown.lens_line()
    shares: list[float] = []
    output, said = session.colour_video(shares.append)
    assert shares[-1] == 1
    assert said.startswith("film.mkv: 12 frames")
    with Video(output) as video:
        assert sum(isinstance(one, Frame) for one in video.items()) == 12


def test_a_long_video_is_shown_in_part(session: Session, tmp_path: Path) -> None:
    session.open_video(film(tmp_path / "long.mkv", MOST_FRAMES + 7, (16, 16)))
    output, _ = session.colour_video(lambda _: None)
    with Video(output) as video:
        assert sum(isinstance(one, Frame) for one in video.items()) == MOST_FRAMES
    session.show_frame(1e9)


def test_sessions_are_apart_and_keep_nothing(model: DepthModel, tmp_path: Path) -> None:
    root = tmp_path / "served"
    root.mkdir()
    sessions = Sessions(lambda: Session(model, renderer(model), root))
    paths = [picture(root / f"{seed}.png", seed=seed) for seed in range(2)]
    for path in paths:
        sessions.of(path.stem).open_picture(path)
        sessions.of(path.stem).write_files()
    for path in paths:
        assert sessions.of(path.stem).shown.name == path.stem
    for path in paths:
        sessions.forget(path.stem)
        assert not path.exists()
    assert not [*root.iterdir()]
    sessions.of("0")
    for key in range(100):
        sessions.of(str(key))
    assert len([*root.iterdir()]) == 32


def test_files_that_were_not_uploaded_are_neither_shown_nor_removed(
    model: DepthModel, tmp_path: Path
) -> None:
    root = tmp_path / "served"
    root.mkdir()
    secret, film_path = picture(tmp_path / "secret.png"), film(tmp_path / "secret.mkv")
    (root / "link.png").symlink_to(secret)
    session = Session(model, renderer(model), root)
    for path in (
        *(secret, root / ".." / "secret.png", root / "link.png", root, root / "gone.png"),
        *(Path("secret.png"), Path("None"), Path("http://127.0.0.1/a.png"), root / "a\0.png"),
    ):
        for take in (session.open_picture, session.open_video):
            with pytest.raises(ImageError, match="only uploaded files are taken"):
                take(path)
    with pytest.raises(ImageError, match="only uploaded files are taken"):
        session.open_video(film_path)
    session.close()
    assert secret.exists()
    assert film_path.exists()


def test_without_gradio_the_extra_is_named(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_head(host.model).save_pretrained(tmp_path / "head")
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = run("app", "--host", host.name, "--head", tmp_path / "head")
    assert done.exit_code == 2
    assert 'pip install "clipdepth-plugin[app]"' in words(done.stderr)
    assert "--head is missing" in words(run("app", "--host", host.name).stderr)
