"""What of ``clipdepth annotate`` does not need LeRobot; the rest is in tests/lerobot.

Axes: H W pixels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from clipdepth_plugin.annotating.encoding import DepthRange
from clipdepth_plugin.annotating.lenses import Lenses
from clipdepth_plugin.annotating.settings import AnnotateJob, AnnotateSettings
from clipdepth_plugin.errors import ClipDepthError
from tests.tiny.command_line import run, words

CAMERAS = ("observation.images.top", "observation.image")


def test_what_is_not_known_gets_one_value_that_nothing_else_has() -> None:
    nan, inf = np.nan, np.inf
    depth_HW = np.array([[nan, inf, -inf, 0.0, -1.0, 0.011], [0.0112, 1.0, 9.5, 9.6, 10, 1e9]])
    frame = DepthRange(0.01, 0.0112, 9.5).stored(depth_HW.astype(np.float32))
    low = 0.01
    expected = [[low, low, low, low, low, low], [0.0112, 1.0, 9.5, low, low, low]]
    np.testing.assert_allclose(frame.depth_HW1[..., 0], expected, rtol=1e-6)
    assert frame.depth_HW1.dtype == np.float32
    assert (frame.unknown, frame.out_of_range) == (9, 6)
    assert 0.0105 < DepthRange(0.01, 0.0112, 9.5).known_from < 0.0107


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"tip": [80, 80, 47, 31]}, "'tip': expected a camera, or EPISODE/CAMERA; cameras are top"),
        ({"9/top": None}, "'9/top': expected .*episodes 0 to 1"),
        ({"-1/top": None}, "'-1/top': expected"),
        ({"x/top": None}, "'x/top': expected"),
        ({"top": [80, 80]}, "top: "),
        ({"top": "80"}, "top: "),
        ([1], "valid dictionary"),
    ],
)
def test_lens_files_that_are_wrong(tmp_path: Path, tree: object, message: str) -> None:
    file = tmp_path / "lenses.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(ClipDepthError, match=message):
        Lenses(AnnotateSettings(intrinsics_file=str(file)), CAMERAS, 2)


def test_an_episode_goes_before_all() -> None:
    lenses = Lenses(AnnotateSettings(focal_px=80.0), CAMERAS, 2)
    assert lenses(0, CAMERAS[0], (64, 96)) == (80.0, 80.0, 47.5, 31.5)
    assert Lenses(AnnotateSettings(), CAMERAS, 2)(1, CAMERAS[1], (64, 96)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --teacher, or --host and --head"),
        (("--host", "demo"), "give --teacher, or --host and --head"),
        (("--teacher", "x:y", "--host", "demo"), "give --teacher, or --host and --head"),
        (("--teacher", "x:y", "--actors", "2"), "--actors: are Ray's"),
        (("--teacher", "x:y", "--shard", "3/2"), "expected I/N"),
        (("--teacher", "x:y", "--focal-px", "9", "--intrinsics", "9,9,4,4"), "give one of them"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run("annotate", tmp_path, "-o", tmp_path / "new", *options)
    assert done.exit_code == 2
    assert message in words(done.output)
    assert not list(tmp_path.iterdir())


def test_without_lerobot_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    done = run("annotate", tmp_path, "-o", tmp_path / "new", "--teacher", "x:y")
    assert done.exit_code == 2
    assert 'pip install "lerobot[dataset]"' in words(done.output)


def test_a_path_that_lerobot_cannot_join_videos_in(tmp_path: Path) -> None:
    with pytest.raises(ClipDepthError, match="apostrophe"):
        AnnotateJob(dataset="x", source="x:y", folder=tmp_path / "it's")
