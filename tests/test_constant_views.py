"""A view whose pixels are all the same, as a policy fills in a missing camera, has no depth.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.maps.stitching import stitch
from tests.tiny.case import HostCase, pixels
from tests.tiny.command_line import run, save_pictures, tiny_host, words
from tests.tiny.depth_png import read_depth_png
from tests.tiny.heads import small_head
from tests.tiny.packed import PACKED
from tests.tiny.packed_case import PackedCase
from tests.tiny.table import BY_NAME

FILLED = {
    "-1, as LeRobot's policies": (-1.0, -1.0, -1.0),
    "zeros": (0.0, 0.0, 0.0),
    "a black picture, normalised": (-1.8, -1.75, -1.48),
}


def empty_views(maps: list[Tensor]) -> list[bool]:
    """Which maps are NaN all over; the others must be finite."""
    empty = [bool(one.isnan().all()) for one in maps]
    assert all(bool(one.isfinite().all()) != no for one, no in zip(maps, empty, strict=True))
    return empty


@torch.no_grad()
def test_on_every_host(case: HostCase) -> None:
    host, x_B3HW = case.host(), case.pixels()
    x_B3HW[1] = torch.tensor((-0.9, 0.2, 0.6))[:, None, None]
    head = small_head(host, tower=case.choose) if case.choose else small_head(host)
    with attach(host, head, tower=case.choose) as plugin, plugin.capture() as seen:
        case.run(host, x_B3HW)
    maps = [one for run in seen for one in run.depths]
    assert empty_views(maps) == [view == 1 for view in range(case.views)]


@pytest.mark.parametrize("packed", PACKED, ids=lambda one: one.name)
@torch.no_grad()
def test_on_every_packed_host(packed: PackedCase) -> None:
    """Padding makes no view constant, and hides none."""
    host, pictures = packed.host(), packed.pictures()
    pictures[1][:] = torch.tensor((0.4, 0.2, 0.6))[:, None, None]
    with attach(host, small_head(host)) as plugin, plugin.capture() as seen:
        packed.run(host, packed.pack(pictures))
    assert empty_views(seen[-1].depths) == [picture == 1 for picture, *_ in packed.views]


@pytest.mark.parametrize("colour", FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("name", ["pi0", "lerobot_pi0", "lerobot_smolvla"])
@torch.no_grad()
def test_a_policy_without_a_camera(
    name: str, colour: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    case = BY_NAME[name]
    if case.absent:
        pytest.skip("not in this transformers")
    host, x_B3HW = case.host(), case.pixels()
    views = len(x_B3HW) // 2
    x_B3HW[-views:] = torch.tensor(colour)[:, None, None]
    with attach(host, small_head(host)) as plugin, plugin.capture() as seen:
        case.run(host, x_B3HW)
    maps = [one for run in seen for one in run.depths]
    assert empty_views(maps) == [False] * views + [True] * views
    assert "constant picture" in caplog.text


def read_all(one: Any) -> dict[str, list[Tensor]]:
    """Everything that is read of a pass of views of 32 x 32."""
    sizes = [(40, 60)] * 3
    return {
        "depth": list(one.depth),
        "depths": one.depths,
        "confidence": list(one.confidence),
        "confidences": one.confidences,
        "predict": list(one.predict()),
        "predict, size": list(one.predict((20, 24))),
        "predict, images": one.predict(original_sizes=sizes),
        "predict, cameras": list(one.predict(focal_px=[30.0, None, 20.0])),
        "predict_confidence": list(one.predict_confidence()),
        "predict_confidence, images": one.predict_confidence(original_sizes=sizes),
    }


def three_views() -> Tensor:
    x_B3HW = pixels(1, 3)
    x_B3HW[2] = -1.0
    return x_B3HW


def squashing_plugin() -> tuple[nn.Module, DepthPlugin]:
    """A host that squashes pictures to 32 x 32, and a head with confidence and a camera."""
    host = BY_NAME["dinov2"].host()
    head = small_head(host, confidence=True, canonical_focal=30.0)
    half = (0.5, 0.5, 0.5)
    return host, attach(host, head, processor=Preprocessing(half, half, (32, 32), "squash"))


@pytest.mark.parametrize("inference", [False, True])
def test_all_that_is_read_agrees(inference: bool, caplog: pytest.LogCaptureFixture) -> None:
    host, plugin = squashing_plugin()
    with torch.inference_mode(inference), torch.no_grad(), plugin.capture() as seen:
        host(three_views())
        for one in (plugin, seen[-1]):
            for what, maps in read_all(one).items():
                assert empty_views(maps) == [False, False, True], what
        host(three_views())
        assert empty_views(plugin.depths) == [False, False, True]
        alone = plugin.tower_pass(three_views())
        assert empty_views(alone.depths) == [False, False, True]
    said = [r.getMessage() for r in caplog.records if "constant picture" in r.getMessage()]
    assert [message.split(" is ")[0] for message in said] == ["view 2"]


@torch.no_grad()
def test_other_views_are_as_without_it() -> None:
    host, plugin = squashing_plugin()
    host(three_views())
    depth_B1HW = plugin.depth
    host(three_views()[:2])
    torch.testing.assert_close(plugin.depth, depth_B1HW[:2])


@torch.no_grad()
def test_the_torch_module_is_as_it_was() -> None:
    """It trains heads on whatever pictures it is given."""
    _, plugin = squashing_plugin()
    depth_B1HW = plugin(three_views())
    assert isinstance(depth_B1HW, Tensor)
    assert bool(depth_B1HW.isfinite().all())


@pytest.mark.parametrize(
    ("change", "empty"),
    [
        (lambda x: x, True),
        (lambda x: x + 1e-7 * torch.randn(x.shape), True),  # a resize in floats rounds
        (lambda x: x.half().float() * 100, True),
        (lambda x: x.index_fill(-1, torch.tensor([3]), -0.99), False),  # one column, 1 grey level
        (lambda x: x + torch.linspace(0, 1, 32), False),
    ],
    ids=["constant", "rounded", "loud", "a line", "a ramp"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_constant(change: Any, empty: bool, dtype: torch.dtype) -> None:
    host, plugin = squashing_plugin()
    host.to(dtype)
    x_B3HW = change(torch.full((1, 3, 32, 32), -1.0))
    host(x_B3HW.to(dtype))
    assert empty_views(plugin.depths) == [empty]


@pytest.mark.parametrize("filled", [torch.nan, torch.inf])
@torch.no_grad()
def test_what_is_not_finite_is_refused(filled: float) -> None:
    host, plugin = squashing_plugin()
    x_B3HW = three_views()
    x_B3HW[1] = filled
    host(x_B3HW)
    with pytest.raises(NoDepthError, match=r"views \[1\]"):
        _ = plugin.depth


@torch.no_grad()
def test_pixels_that_were_written_into_since() -> None:
    """What they were is not known, and tokens are as they were: depth is read as ever."""
    host, plugin = squashing_plugin()
    x_B3HW = three_views()
    host(x_B3HW)
    x_B3HW.zero_()
    assert bool(plugin.depth.isfinite().all())


def test_an_overview_of_one_colour() -> None:
    """Tiles that show what the overview's pixels are too few for."""
    tile_1HW, overview_1HW = torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), torch.nan)
    tile_1HW[..., 2:] = torch.nan
    whole_1HW = stitch([tile_1HW], overview_1HW)
    torch.testing.assert_close(whole_1HW, tile_1HW, equal_nan=True)
    tile_1HW[:], overview_1HW[:] = torch.nan, 2.0
    torch.testing.assert_close(stitch([tile_1HW], overview_1HW), overview_1HW)


@pytest.mark.parametrize("confidence", [False, True])
def test_predict_of_pictures_of_one_colour(
    confidence: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    host = tiny_host(tmp_path_factory)
    small_head(load_host(str(host)).model, confidence=confidence).save_pretrained(tmp_path / "head")
    save_pictures(tmp_path / "in", {"a.png": (40, 60), "dot.png": (1, 1)})
    Image.new("RGB", (64, 48), "white").save(tmp_path / "in" / "white.png")
    Image.new("L", (32, 32), 17).save(tmp_path / "in" / "grey.png")
    out = tmp_path / "out"
    more = ("--confidence",) if confidence else ()
    options = ("--host", host, "--head", tmp_path / "head", "-o", out, "--npy", *more)
    result = run("predict", tmp_path / "in", *options)
    assert result.exit_code == 0, result.output
    said = words(result.output)
    for name in ("dot", "grey", "white"):
        assert f"no depth, as it is of one colour: {tmp_path / 'in' / name}.png" in said
    assert said.count("no depth, as") == 3
    for name, empty in {"a": False, "dot": True, "white": True, "grey": True}.items():
        for metres_HW in (read_depth_png(out / f"{name}.depth.png"), np.load(out / f"{name}.npy")):
            assert bool(np.isnan(metres_HW).all()) == empty, name
        assert (out / f"{name}.colour.png").exists()


@torch.no_grad()
def test_evaluation_leaves_pictures_of_one_colour_out() -> None:
    noise_3HW = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    depth_1HW, camera = torch.full((1, 32, 32), 2.0), (30.0, 30.0, 15.5, 15.5)
    pictures = {"noise": noise_3HW, "white": torch.full_like(noise_3HW, 255)}
    samples = [Sample(image, depth_1HW, camera, name) for name, image in pictures.items()]
    _, plugin = squashing_plugin()
    result = evaluate(plugin, samples, get_protocol("rgbd", depth_range=(1e-3, 10.0)), batch_size=2)
    assert result.skipped == ("white",)
    assert [row.name for row in result.rows] == ["noise"]
