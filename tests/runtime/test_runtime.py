"""Exported folders run without torch: the numbers of predict, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import DepthPlugin, runtime
from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import ClipDepthError, ExportError, HostError, NoDepthError
from clipdepth_plugin.maps.geometry import ViewGeometry, depth_to_points
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.runtime.placing import to_image
from tests.tiny.exported import (
    MEAN,
    SIDE,
    STD,
    head,
    picture,
    rewrite,
    tower,
)

SIZES = [(90, 130), (64, 64), (50, 33), (1, 1), (200, 64)]


def said(folder: Path, **changes: Any) -> Path:
    """The folder with another card."""
    rewrite(folder, {**json.loads((folder / "depth.json").read_text()), **changes})
    return folder


def predicted(card: dict[str, Any], sizes: list[Any], focal: Any) -> Any:
    """What ``clipdepth predict`` makes of the pictures."""
    shown = Preprocessing(MEAN, STD, (SIDE, SIDE), **{"resize": "squash", **card})
    depth_of = PictureDepth(DepthPlugin(tower(), head()), shown)
    return depth_of([picture(seed, *size) for seed, size in enumerate(sizes)], focal_px=focal)


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"resize": "shortest", "resize_to": 72, "interpolation": "bilinear"},
        {"resize": "shortest", "crop_half": "down"},
        {"resize": "pad"},
        {"resize": "fit"},
        {"resize": "fit_middle", "interpolation": "lanczos"},
        {"resize": "fit_end"},
    ],
)
def test_metres_in_the_picture_are_those_of_predict(card: dict[str, Any], folder: Path) -> None:
    model = runtime.open(said(folder, **card))
    focals = [None, 300.0, 40.0, None, 200.0]
    sizes = SIZES if card.get("resize") != "shortest" else SIZES[:3] + SIZES[4:]
    focals = focals if len(sizes) == 5 else [None, 300.0, 40.0, 200.0]
    pictures = [np.asarray(picture(seed, *size)) for seed, size in enumerate(sizes)]
    results = model.batch(pictures, focals)
    for result, map_CHW in zip(results, predicted(card, sizes, focals), strict=True):
        assert result.depth.dtype == np.float32
        np.testing.assert_allclose(result.depth, map_CHW[0].numpy(), rtol=1e-4)
        assert result.confidence is not None
        # Between its values it is interpolated itself; predict interpolates the scale of errors.
        np.testing.assert_allclose(result.confidence, map_CHW[1].numpy(), atol=2e-2)
    one = model(pictures[1], focals[1])
    np.testing.assert_allclose(one.depth, results[1].depth, rtol=1e-5)


def test_points_are_those_of_torch(metric: Path) -> None:
    result, camera = runtime.open(metric)(picture(0, 48, 40)), (50.0, 52.0, 20.5, 23.0)
    expected = depth_to_points(torch.from_numpy(result.depth)[None], camera)
    np.testing.assert_allclose(result.points(camera), expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(HostError, match="intrinsics"):
        result.points((0.0, 1.0, 2.0, 3.0))


def test_relative_depth_is_never_called_metres(
    relative: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = runtime.open(relative)
    images = [picture(seed, *size) for seed, size in enumerate(SIZES[:3])]
    pixels_B3HW, views = frames(images, Preprocessing(MEAN, STD, (SIDE, SIDE), "squash"))
    inverses = pixels_B3HW.mean(1, keepdim=True).exp()
    for result, view, inverse_1HW in zip(model.batch(images), views, inverses, strict=True):
        assert result.units == "inverse depth"
        assert result.confidence is None
        with pytest.raises(NoDepthError, match=r"gives inverse depth, not metres: read .inverse"):
            _ = result.depth
        np.testing.assert_allclose(result.inverse_depth, view.to_image(inverse_1HW)[0], rtol=1e-4)
    with pytest.raises(ClipDepthError, match="relative depth"):
        model(picture(0, 9, 9), 100.0)
    assert not caplog.records


@pytest.mark.parametrize("size", [(64, 64), (63, 40), (200, 300)])
@pytest.mark.parametrize("cells", [(16, 16), (9, 31), (1, 1)])
def test_a_map_goes_back_as_torch_carries_it(size: tuple[int, int], cells: tuple[int, int]) -> None:
    map_hw = np.random.default_rng(0).random(cells, dtype=np.float32)
    for view in (
        ViewGeometry.squashed(size, (SIDE, SIDE)),
        ViewGeometry(size, (SIDE, SIDE), (1.3, 1.7), (-9, -4.5)),
        ViewGeometry(size, (SIDE, SIDE), (0.3, 0.2), (7, 20)),
    ):
        there_HW = view.to_image(torch.from_numpy(map_hw)[None])[0].numpy()
        np.testing.assert_allclose(to_image(map_hw, view), there_HW, atol=1e-5)


def test_a_camera_is_a_focal_length_or_a_matrix(
    metric: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, one = runtime.open(metric), picture(0, 90, 130)
    by_focal = model(one, focal_px=120.0).depth
    assert not caplog.records
    matrix = [[120.0, 0, 64.5], [0, 120.0, 44.5], [0, 0, 1]]
    np.testing.assert_array_equal(model(one, intrinsics=matrix).depth, by_focal)
    with caplog.at_level(logging.WARNING):
        plain = [model(one).depth for _ in range(2)]
    assert [r.getMessage()[:60] for r in caplog.records] == [
        "no camera given: the metres are those of a focal length of 5"
    ]
    factor = 120 * np.sqrt(64 / 90 * 64 / 130) / 50
    np.testing.assert_allclose(by_focal, plain[0] * factor, rtol=1e-5)
    with pytest.raises(ClipDepthError, match="as no lens does"):
        model(one, focal_px=0.5)
    with pytest.raises(ClipDepthError, match="give one"):
        model(one, focal_px=120.0, intrinsics=matrix)
    with pytest.raises(ClipDepthError, match="2 given for 1 images"):
        model.batch([one], [1.0, 2.0])


def test_a_picture_of_one_colour_has_no_depth(metric: Path) -> None:
    model = runtime.open(metric)
    flat, one = model.batch([np.full((20, 30, 3), 128, np.uint8), picture(0, 20, 30)])
    assert np.isnan(flat.depth).all()
    assert np.isfinite(one.depth).all()
    assert model.batch([]) == []


ARRAY = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ARRAY[..., :1], r"\(8, 9, 1\) of uint8, .*grey"),
        (ARRAY[..., 0], "grey"),
        (np.zeros((8, 9, 4), np.uint8), r"with alpha.*\[\.\.\., :3\]"),
        (np.zeros((3, 8, 9), np.uint8), "colours first"),
        (ARRAY[None], r"several pictures.*batch"),
        (ARRAY[:0], "no pixels"),
        (ARRAY.astype(np.float32), r"float32.*expected uint8, .*255 \* x"),
        (ARRAY.astype(np.float32) * 9 - 1, "expected uint8"),
        (np.full(ARRAY.shape, np.nan), "NaN"),
        (ARRAY.astype(np.int64), "int64"),
        (ARRAY.astype(bool), "bool"),
        (torch.zeros(3, 8, 9), "a Tensor; expected a picture's file"),
        (None, "NoneType"),
        (b"x", "bytes"),
        (Image.new("L", (4, 4)), "mode L, expected RGB"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        ("no/such.png", "no such file"),
        (Path(__file__), "text file"),
    ],
)
def test_what_is_no_picture(given: Any, message: str, metric: Path) -> None:
    with pytest.raises(ClipDepthError, match=message):
        runtime.open(metric)(given)


def test_what_is_no_list_of_pictures(metric: Path, tmp_path: Path) -> None:
    model = runtime.open(metric)
    for given in (ARRAY[None], "a.png", None):
        with pytest.raises(ClipDepthError, match="expected a list of pictures"):
            model.batch(given)  # type: ignore[arg-type]
    picture(0, 90, 90).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with Image.open(tmp_path / "a.png") as broken, pytest.raises(ClipDepthError, match="damaged"):
        model(broken)
    with pytest.raises(ExportError, match="folder: got 5"):
        runtime.open(5)  # type: ignore[arg-type]


def test_a_file_is_read_upright(metric: Path, tmp_path: Path) -> None:
    turned, exif = picture(0, 20, 30), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert runtime.open(metric)(tmp_path / "turned.png").depth.shape == (30, 20)


def test_check_compares_with_the_expected_depth(
    metric: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert runtime.open(metric).check() < 1e-4
    assert not caplog.records
    wrong = np.load(folder / "check.npy") * 1.1
    for content, message in (
        (wrong, "differs by 0.091 from what PyTorch gave"),
        (wrong[:5], "has shape"),
        (wrong.astype(np.float64), r"float64 \(64, 64\), expected"),
        (wrong * np.nan, "depth is not where"),
    ):
        np.save(folder / "check.npy", content)
        with pytest.raises(ExportError, match=message):
            runtime.open(folder).check()
    (folder / "check.npy").write_bytes(b"\x80\x04.")
    with pytest.raises(ExportError, match=r"no \.npy file"):
        runtime.open(folder).check()
    with pytest.raises(ExportError, match="has no picture"):
        runtime.open(said(folder, check=None)).check()


def _damage(folder: Path) -> None:
    content = bytearray((folder / "tower_depth.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tower_depth.onnx").write_bytes(content)


def _swap(folder: Path) -> None:
    """Another network, its checksum in the card."""
    import hashlib

    (folder / "tower_depth.onnx").write_bytes(b"no network")
    digest = hashlib.sha256(b"no network").hexdigest()
    said(folder, files={"tower_depth.onnx": {"sha256": digest}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_damage, "damaged, or of another export"),
        (_swap, "can't be opened by onnxruntime"),
        (lambda f: (f / "tower_depth.onnx").unlink(), "no such file, though depth.json names it"),
        (lambda f: (f / "depth.json").unlink(), "depth.json: no such file"),
        (lambda f: (f / "depth.json").write_text("[]"), "expected a mapping"),
        (lambda f: (f / "depth.json").write_text("x" * (5 << 20)), "larger than"),
        (lambda f: (f / "tower_depth.onnx.data").write_text("x"), "does not name it"),
        (lambda f: said(f, format=None), "no format"),
        (lambda f: said(f, files={}), "names no tower_depth.onnx, but no files"),
        (lambda f: said(f, size=[32, 32]), r"its input is \[64, 64\], but depth.json says"),
        (lambda f: said(f, canonical_focal=None), "only where depth.json has canonical_focal"),
        (shutil.rmtree, "give a folder that clipdepth export wrote"),
    ],
)
def test_folders_that_are_refused(spoil: Any, message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        runtime.open(folder)


def test_providers(metric: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="provider 'gpu': there are cpu, cuda, tensorrt"):
        runtime.open(metric, provider="gpu")
    import onnxruntime

    available = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(ExportError, match=f"provider {provider}: this onnxruntime has CPU"):
            runtime.open(metric, provider)
    for threads in (0, -1, "two", 1.5):
        with pytest.raises(ClipDepthError, match="threads: got"):
            runtime.open(metric, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="device: got -1"):
        runtime.open(metric, device=-1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="onnxruntime is not installed"):
        runtime.open(metric)


WITHOUT = """
import sys

class Hook:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "pydantic", "typer", "transformers", "einops"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Hook())
from clipdepth_plugin import runtime
model = runtime.open(sys.argv[1])
print(model.check() < 1e-4, model(sys.argv[1] + "/check.png", focal_px=70.0).depth.shape)
"""


def test_it_runs_where_torch_can_not_be_imported(metric: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(metric)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.split("\n")[0] == "True (64, 64)", ran.stderr
