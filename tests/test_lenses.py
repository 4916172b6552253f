"""Cameras that cannot be are refused, unlikely ones named once; points of maps of every dtype."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.arguments import Intrinsics, parse_camera, parse_focal_length, parse_size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import ClipDepthError, HostError
from clipdepth_plugin.geometry import ViewGeometry, depth_to_points
from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.maps.stitching import paste, stitch

VGA, KITTI = (480, 640), (375, 1242)

SPARSE: Any = torch.eye(3).to_sparse()
K4 = [[500.0, 0, 320, 0], [0, 500.0, 240, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("camera", "size"),
    [
        ((518.9, 519.5, 325.6, 253.7), VGA),  # Kinect
        ((721.5, 721.5, 609.6, 172.9), KITTI),
        ((181.6, 242.4, 111.5, 111.5), (224, 224)),  # 4:3 squashed to a square
        ((640 / np.pi, 640 / np.pi, 319.5, 239.5), VGA),  # an equidistant fisheye of 180 degrees
        ((160.0, 160.0, 319.5, 239.5), VGA),  # the widest rectilinear lens: 127 degrees
        ((30000.0, 30000.0, 319.5, 239.5), VGA),  # 1.2 degrees
        (centred(0.9, (1, 1)), (1, 1)),
    ],
)
def test_lenses_that_exist(
    camera: Intrinsics, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    LensCheck()(camera, size, "intrinsics")
    assert not caplog.text


IMPOSSIBLE: list[tuple[tuple[float, ...], tuple[int, int]]] = [
    ((0.8, 1.1, 0.5, 0.5), VGA),  # normalised
    ((1.0, 1.0, 0.0, 0.0), VGA),  # the identity
    ((4.25, 4.25, 319.5, 239.5), VGA),  # a telephone's millimetres
    ((24.0, 24.0, 621.0, 187.0), KITTI),
    ((1e6, 1e6, 319.5, 239.5), VGA),
    ((500.0, 20.0, 319.5, 239.5), VGA),
    ((500.0, 500.0, 1e5, 239.5), VGA),
    ((500.0, 500.0, 319.5, -1e5), VGA),
]


@pytest.mark.parametrize(("camera", "size"), IMPOSSIBLE)
def test_lenses_that_cannot_be(camera: Any, size: tuple[int, int]) -> None:
    with pytest.raises(HostError, match=r"intrinsics: .* as no lens does: cameras are in pixels"):
        depth_to_points(torch.ones(1, *size), camera)


@pytest.mark.parametrize(
    ("camera", "size", "doubt"),
    [
        ((50.0, 50.0, 319.5, 239.5), VGA, "sees 162"),  # millimetres
        ((60000.0, 60000.0, 319.5, 239.5), VGA, "sees 0.61"),
        ((1036.0, 1036.0, 651.0, 507.0), VGA, "centre outside"),  # of 1280 x 960
        ((259.0, 259.0, 162.0, 126.0), VGA, "centre far"),  # of 320 x 240
        ((325.6, 253.7, 518.9, 519.5), VGA, "centre outside"),  # (cx, cy, fx, fy)
        ((518.9, 325.6, 519.5, 253.7), VGA, "1.59 times"),  # (fx, cx, fy, cy)
        ((500.0, 500.0, 239.5, 319.5), (640, 240), "centre far"),  # turned
    ],
)
def test_lenses_that_are_unlikely(
    camera: Intrinsics, size: tuple[int, int], doubt: str, caplog: pytest.LogCaptureFixture
) -> None:
    check = LensCheck()
    for image in range(3):
        check(camera, size, f"intrinsics, image {image}")
    said = [record.message for record in caplog.records if doubt in record.message]
    assert len(said) == 1
    assert said[0].startswith("intrinsics, image 0: a camera (fx, fy, cx, cy) = (")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (K4, r"\[:3, :3\], of the 4x4"),
        (K4[:3], r"\[:3, :3\], of the 3x4"),
        (torch.tensor(K4), r"\[:3, :3\], of the 4x4"),
        (np.array(K4)[:3, :3].T, "transpose"),
        (np.array(K4)[:3, :3].ravel(), "3 rows of 3"),
        (np.array(K4).ravel(), "3 rows of 3"),
        ([[500, 2.0, 320], [0, 500, 240], [0, 0, 1]], r"\[\[fx, 0, cx\]"),
        ([[500, 0, 320], [1.0, 500, 240], [0, 0, 1]], r"\[\[fx, 0, cx\]"),
        ([[500, 0, 320], [0, 500, 240], [0, 0, 2]], r"\[\[fx, 0, cx\]"),
        ([[500, 0, 320], [0, -500, 240], [0, 0, 1]], "positive"),
        ((1e40, 1e40, 0, 0), "finite"),
        ((500, 500, 1e40, 0), "finite"),
        ((10**400, 500, 0, 0), "finite"),
        ((500, 500, 320, None), "expected"),
        ((500, 500, 320, True), "expected"),
        ((500, 500, 320, "240"), "expected"),
        ((500 + 0j, 500, 320, 240), "expected"),
        ("518.8 px", "expected"),
        ({"fx": 500}, "expected"),
        (torch.ones(4, device="meta"), "expected"),
        (SPARSE, "expected"),
        (torch.ones(10**6), "expected"),
        (10 ** (10**4), "expected"),
    ],
    ids=lambda x: str(x)[:40].replace("\n", "") if not isinstance(x, int) else "huge",
)
def test_no_cameras(matrix: Any, message: str) -> None:
    with pytest.raises(HostError, match=f"(?s)intrinsics: got .*{message}"):
        parse_camera(matrix, "intrinsics")


def test_a_list_in_itself() -> None:
    endless: list[Any] = [500, 500, 320]
    endless.append(endless)
    for parse in (parse_camera, parse_size, parse_focal_length):
        with pytest.raises(HostError, match="expected"):
            parse(endless, "it")


def test_what_products_of_matrices_leave_of_skew() -> None:
    k = [[500, 1e-9, 320], [-1e-9, 500, 240], [0, 0, 1]]
    assert parse_camera(k, "intrinsics") == (500, 500, 320, 240)
    assert parse_focal_length(Fraction(1, 3), "focal") == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [(10**30, 4), (4, 10**30), (1 << 15, 1 << 15), (10**400, 4)])
def test_sizes_beyond_memory(size: Any) -> None:
    with pytest.raises(HostError, match="pixels in all"):
        parse_size(size, "size")


CAMERA = (700.25, 700.75, 300.5, 250.25)


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64],
    ids=str,
)
def test_points_of_maps_of_every_dtype(dtype: torch.dtype) -> None:
    depth_1HW = torch.randint(1, 9, (1, *VGA), generator=torch.Generator().manual_seed(0))
    points_HW3 = depth_to_points(depth_1HW.to(dtype), CAMERA)
    assert points_HW3.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = depth_to_points(depth_1HW.float(), CAMERA)
    torch.testing.assert_close(points_HW3.float(), expected, rtol=1e-6, atol=1e-6)
    assert points_HW3[100, 600, 0] == pytest.approx(float(depth_1HW[0, 100, 600]) * 299.5 / 700.25)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_maps_of_every_dtype_go_where_float32_goes(dtype: torch.dtype) -> None:
    values_CHW = torch.arange(60).view(1, 6, 10) * 4
    for view in (
        ViewGeometry.squashed((900, 1600), (60, 100)),
        ViewGeometry.cropped((900, 1600), (100, 300), (600, 1000), (60, 100)),
    ):
        got = view.to_image(values_CHW.to(dtype))
        torch.testing.assert_close(
            got, view.to_image(values_CHW.float()), equal_nan=True, rtol=0, atol=0
        )


@pytest.mark.parametrize("join", [stitch, paste])
def test_tiles_of_half_precision_are_joined_in_float32(join: Any) -> None:
    overview_1HW = torch.full((1, 8, 8), 1003.0)
    tile_1HW = torch.full((1, 8, 8), torch.nan)
    tile_1HW[:, :4, :4] = 501.0
    got_1HW = join([tile_1HW.half()], overview_1HW.half())
    torch.testing.assert_close(got_1HW, join([tile_1HW], overview_1HW))


@pytest.mark.parametrize(
    "odd",
    [
        None,
        torch.ones(1, 4, 4, dtype=torch.complex64),
        torch.ones(1, 4, 4, dtype=torch.bool),
        SPARSE,
        torch.ones(1, 0, 4),
        torch.ones(4, 4),
        np.ones((1, 4, 4)),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', '')}",
)
def test_what_is_no_map(odd: Any) -> None:
    view = ViewGeometry.squashed((4, 4), (4, 4))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: depth_to_points(odd, (4, 4, 2, 2)),
        lambda: view.to_image(odd),
        lambda: stitch([odd]),
        lambda: paste([odd], odd),
        lambda: paste([]),
        lambda: stitch(odd),
    )
    for call in calls:
        with pytest.raises(ClipDepthError):
            call()


@pytest.mark.parametrize(
    "odd",
    [
        {"canonical_focal": "500"},
        {"canonical_focal": True},
        {"canonical_focal": -5},
        {"canonical_focal": 1e40},
        {"canonical_focal": 4.2, "input_size": (480, 640)},
        {"depth_range": ("0.1", 10)},
        {"depth_range": (True, 10)},
        {"depth_range": (0.1, float("nan"))},
        {"depth_range": (0.1, 1e40)},
    ],
    ids=str,
)
def test_head_configs(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(odd))):
        HeadConfig(width=8, **odd)
