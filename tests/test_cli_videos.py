"""``clipdepth predict`` on videos, globs and cameras from files, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.files.videos import Frame, Video
from tests.tiny.command_line import run, save_pictures, tiny_host, words

av = pytest.importorskip("av")
TIMES = [0, 40, 90, 100, 300, 340]
"""Milliseconds of the frames: not equally spaced."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    host = tiny_host(tmp_path_factory)
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    loaded = load_host(str(host)).model
    DepthHead.for_host(loaded, preset="fast", activation="log").save_pretrained(folder)
    return ("--host", host, "--head", folder)


def write_film(
    path: Path,
    times: list[int] | None = None,
    *,
    size: tuple[int, int] = (33, 47),
    codec: str = "ffv1",
    pixels: str = "bgr0",
    sound: str | None = None,
) -> Path:
    """A film of noise; ``times`` in milliseconds."""
    random = np.random.default_rng(0)
    times = TIMES if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = None if sound is None else container.add_stream(sound, rate=8000)
        container.start_encoding()  # also where there is no frame
        for pts in times:
            frame = av.VideoFrame.from_ndarray(
                random.integers(0, 256, (*size, 3), dtype=np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
        if voice is not None:
            wave = (np.sin(np.arange(8000) / 3) * 9000).astype(np.int16)[None]
            tone = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            tone.sample_rate, tone.pts = 8000, 0
            container.mux(voice.encode(tone))
            container.mux(voice.encode(None))
    return path


def read_film(path: Path) -> tuple[list[float], list[Any], list[float]]:
    """Frame times in ms, frames, and seconds of each sound."""
    with Video(path) as video:
        items = [one for one in video.items() if isinstance(one, Frame)]
        seconds = [float(one.duration * one.time_base) for one in video.sounds]
        return [float(one.time * video.time_base * 1000) for one in items], items, seconds


@pytest.mark.parametrize("sound", [None, "aac", "pcm_s16le"])
def test_a_video_keeps_its_times_and_its_sound(
    given: tuple[Any, ...], tmp_path: Path, sound: str | None
) -> None:
    film = write_film(tmp_path / "film.mov", codec="png", pixels="rgb24", sound=sound)
    result = run("predict", film, *given, "-o", tmp_path / "out", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    assert "film.mov: 6 frames, 0:00, in film.colour.mp4" in words(result.stderr)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.colour.mp4"]
    times, frames, seconds = read_film(tmp_path / "out" / "film.colour.mp4")
    assert times == pytest.approx(TIMES, abs=0.1)
    assert len(seconds) == (sound is not None)
    assert all(one == pytest.approx(1.0, abs=0.3) for one in seconds)
    height, width, _ = frames[0].image_HW3.shape
    assert (height % 2, width % 2) == (0, 0)
    assert width > 2 * 47


@pytest.mark.parametrize(
    ("codec", "pixels", "size"),
    [
        ("png", "rgba", (33, 47)),
        ("libx264", "yuv420p10le", (48, 32)),
        ("png", "rgb24", (1, 1)),
        ("png", "gray16be", (9, 200)),
    ],
)
def test_videos_of_every_kind(
    given: tuple[Any, ...], tmp_path: Path, codec: str, pixels: str, size: tuple[int, int]
) -> None:
    film = write_film(tmp_path / "film.mov", codec=codec, pixels=pixels, size=size)
    options = ("-o", tmp_path / "out", "--frames", "--npy")
    result = run("predict", film, *given, *options)
    assert result.exit_code == 0, result.output
    assert len(read_film(tmp_path / "out" / "film.colour.mp4")[0]) == len(TIMES)
    names = {path.name for path in (tmp_path / "out" / "film").iterdir()}
    assert names == {
        f"{index:06d}{suffix}"
        for index in range(len(TIMES))
        for suffix in (".depth.png", ".colour.png", ".npy")
    }
    assert np.load(tmp_path / "out" / "film" / "000003.npy").shape == size


def test_damaged_and_empty_videos_are_named(given: tuple[Any, ...], tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.mkv", [20 * one for one in TIMES], size=(64, 64))
    (tmp_path / "noise.mp4").write_bytes(b"no video at all")
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_film(tmp_path / "none.mkv", [])
    write_film(tmp_path / "large.mkv", size=(80, 80))
    result = run(
        "predict", f"{tmp_path}/*.m[kp]*", *given, "-o", tmp_path / "out", "--max-pixels", "4096"
    )
    said = words(result.stderr)
    assert result.exit_code == 1, result.output
    assert "whole.mkv: 6 frames" in said
    assert re.search(r"not done: \S*noise\.mp4: the video is damaged or of a format", said)
    assert re.search(r"cut\.mkv: ends at 0:0\d of 0:06: it was cut short", said)
    assert re.search(r"none\.mkv: (has no|the video is damaged)", said)
    assert re.search(r"large\.mkv, frame 0: its pixels, 80 x 80, are more than 4096", said)
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["cut.colour.mp4", "whole.colour.mp4"]
    assert 0 < len(read_film(tmp_path / "out" / "cut.colour.mp4")[0]) < 6


def test_videos_and_frames_of_others_are_not_replaced(
    given: tuple[Any, ...], tmp_path: Path
) -> None:
    film, out = write_film(tmp_path / "film.mkv"), tmp_path / "out"
    command = ("predict", film, *given, "-o", out)
    out.mkdir()
    write_film(out / "film.colour.mp4", codec="mpeg4", pixels="yuv420p", size=(32, 32))
    assert "film.colour.mp4: not written, as it is, by predict" in words(run(*command).stderr)
    assert run(*command, "--overwrite").exit_code == 0
    assert run(*command).exit_code == 0  # its own
    (out / "film").mkdir()
    (out / "film" / "notes.txt").touch()
    assert run(*command, "--frames").exit_code == 2
    assert run(*command).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ply",), "of a video these are files of each frame"),
        (("--intrinsics", "exif"), "videos have none"),
        (("--undistort",), "needs --intrinsics FILE"),
        (("--focal-px", "40", "--intrinsics", "x.json"), "both say the camera"),
        (("--focal-px", "40"), "trained without a canonical camera"),
    ],
)
def test_options_that_contradict(
    given: tuple[Any, ...], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    film = write_film(tmp_path / "film.mkv")
    result = run("predict", film, *given, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in words(result.stderr)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_video_that_plays(given: tuple[Any, ...], tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", list(range(0, 80_000, 40)), size=(16, 16))
    command = [sys.executable, "-m", "clipdepth_plugin", "predict", film, *given]
    with subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "first map" in line:
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = words(process.stderr.read())
    assert process.returncode == 1, said
    found = re.search(r"film\.mkv: (\d+) of 2000 frames, 0:\d\d, in film\.colour\.mp4", said)
    assert found is not None, said
    assert "stopped by Ctrl-C" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.colour.mp4"]
    assert len(read_film(tmp_path / "out" / "film.colour.mp4")[0]) == int(found[1]) > 0


def test_clouds_take_the_camera_of_a_file(given: tuple[Any, ...], tmp_path: Path) -> None:
    save_pictures(tmp_path / "pics", {"a.png": (40, 60)})
    picture, out = tmp_path / "pics" / "a.png", tmp_path / "out"
    command = ("predict", picture, *given, "-o", out, "--ply", "--glb")
    result = run(*command)
    assert result.exit_code == 1
    assert "its camera is not known, which --ply needs" in words(result.stderr)
    assert "has about 48 at this size" in words(result.stderr)
    result = run(*command, "--intrinsics", "exif")
    assert "its EXIF does not say its focal length" in words(result.stderr)
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"intrinsics": [5000, 5000, 59.5, 39.5], "size": [80, 120]}))
    assert run(*command, "--intrinsics", camera).exit_code == 0
    assert {path.suffix for path in out.iterdir()} == {".png", ".ply", ".glb"}
    assert run(*command, "--intrinsics", camera).exit_code == 0  # its own are replaced
    (out / "a.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    assert "a.ply: not written" in words(run(*command, "--intrinsics", camera).stderr)
    camera.write_text(json.dumps({"intrinsics": [50, 50, 39.5, 39.5], "size": [80, 80]}))
    (out / "a.ply").unlink()
    result = run(*command, "--intrinsics", camera)
    assert result.exit_code == 1
    assert "another shape" in words(result.stderr)


def test_undistorted_pictures_are_what_every_output_is_of(
    given: tuple[Any, ...], tmp_path: Path
) -> None:
    save_pictures(tmp_path / "pics", {"a.png": (40, 60)})
    camera, out = tmp_path / "camera.json", tmp_path / "out"
    lens = {"intrinsics": [30, 30, 29.5, 19.5], "model": "radial", "distortion": [0.3]}
    camera.write_text(json.dumps(lens))
    command = ("predict", tmp_path / "pics", *given, "-o", out, "--npy", "--intrinsics", camera)
    assert "its lens is distorted (radial)" in words(run(*command, "--ply").stderr)
    for _ in range(2):
        result = run(*command, "--undistort")
        assert result.exit_code == 0, result.output
    with Image.open(out / "a.undistorted.png") as image:
        straight_HW3 = np.asarray(image)
    unseen_HW = np.isnan(np.load(out / "a.npy"))
    assert 0 < unseen_HW.mean() < 0.5
    assert (straight_HW3[unseen_HW] == 0).all()


def test_the_demo_host_has_its_own_head(tmp_path: Path) -> None:
    result = run("predict", tmp_path / "gone.png", "--host", "demo", "-o", tmp_path / "out")
    assert "gone.png: no such file" in words(result.stderr)  # and not: --head is missing
    for command in (("predict", "x.png"), ("eval", "--data", "rgbd:x")):
        result = run(*command, "--host", "config:x", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert "--head is missing" in words(result.stderr)


def test_show_is_a_picture_for_notebooks(given: tuple[Any, ...], tmp_path: Path) -> None:
    _, host, _, head = given
    loaded = load_host(str(host))
    with attach(
        loaded.model, DepthHead.from_pretrained(head), processor=loaded.preprocessing
    ) as plugin:
        loaded.model(torch.randn(2, 3, 32, 32))
        alone = plugin.show()
        image = Image.new("RGBA", (60, 40))
        beside = plugin.show([image, image])
        assert alone.height == 2 * 48
        assert beside.width > 2 * 60
        png = beside._repr_png_()
        assert png is not None
        assert png[:4] == b"\x89PNG"
        with pytest.raises(ValueError, match="expected pictures"):
            plugin.show("photo.jpg")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="1"):
            plugin.show(image)
