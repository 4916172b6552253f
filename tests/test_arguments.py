"""What ``predict`` may be given, and what it says of anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.arguments import parse_focal, parse_intrinsics, parse_size, parse_sizes
from clipdepth_plugin.errors import HostError, printable, quoted, shortened

NAN, INF = float("nan"), float("inf")
CAMERA = (500.0, 510.0, 320.0, 240.0)
OTHER = (400.0, 410.0, 32.0, 24.0)
K = [[500.0, 0.0, 320.0], [0.0, 510.0, 240.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "value",
    [
        (4, 6),
        [4, 6],
        (4.0, 6.0),
        np.array([4, 6]),
        (np.int64(4), torch.tensor(6)),
        torch.tensor([4, 6]),
        torch.Size([4, 6]),
    ],
    ids=repr,
)
def test_size(value: Any) -> None:
    got = parse_size(value, "size")
    assert got == (4, 6)
    assert [type(side) for side in got] == [int, int]


@pytest.mark.parametrize(
    "value",
    [
        7,
        None,
        "46",
        (4,),
        (4, 6, 3),
        (2.5, 6),
        (0, 6),
        (4, -6),
        (NAN, 6),
        (INF, 6),
        (True, 6),
        ("4", "6"),
        {"height": 4, "width": 6},
        torch.ones(2, 2),
        torch.tensor([1 + 2j, 3]),
    ],
    ids=repr,
)
def test_odd_sizes(value: Any) -> None:
    with pytest.raises(HostError, match=r"(?s)size: got .*, expected \(height, width\) in"):
        parse_size(value, "size")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((4, 6), (4, 6)),
        (torch.tensor([4, 6]), (4, 6)),
        ([(4, 6), (8, 2)], [(4, 6), (8, 2)]),
        (((4, 6), [8, 2]), [(4, 6), (8, 2)]),
        (torch.tensor([[4, 6], [8, 2]]), [(4, 6), (8, 2)]),
        (np.array([[4, 6], [8, 2]]), [(4, 6), (8, 2)]),
        ([torch.tensor([4, 6]), np.array([8, 2])], [(4, 6), (8, 2)]),
    ],
    ids=repr,
)
def test_sizes(value: Any, expected: tuple[int, int] | list[tuple[int, int]]) -> None:
    assert parse_sizes(value, "original_sizes") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "original_sizes: got 5, expected .* or one such pair for each image"),
        ([(4, 6), (4.5, 6)], r"original_sizes\[1\]: got \[4.5, 6\], expected"),
        ([(4, 6), 3], r"original_sizes\[1\]: got 3, expected"),
    ],
)
def test_odd_lists_of_sizes(value: Any, message: str) -> None:
    with pytest.raises(HostError, match=message):
        parse_sizes(value, "original_sizes")


def test_one_size_of_one_image_may_stand_in_a_list() -> None:
    assert parse_sizes([(4, 6)], "original_sizes") == [(4, 6)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CAMERA, [CAMERA] * 3),
        (torch.tensor(CAMERA), [CAMERA] * 3),
        (K, [CAMERA] * 3),
        (torch.tensor(K), [CAMERA] * 3),
        (np.array(K), [CAMERA] * 3),
        ([CAMERA, OTHER, CAMERA], [CAMERA, OTHER, CAMERA]),
        (torch.tensor([CAMERA, OTHER, CAMERA]), [CAMERA, OTHER, CAMERA]),
        (torch.tensor([K, K, K]), [CAMERA] * 3),
        ([K, OTHER, np.array(K)], [CAMERA, OTHER, CAMERA]),
    ],
)
def test_intrinsics(value: Any, expected: list[tuple[float, ...]]) -> None:
    assert parse_intrinsics(value, 3) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (500.0, r"intrinsics: got 500.0, expected \(fx, fy, cx, cy\) or a 3x3 matrix K"),
        ("camera", "intrinsics: got 'camera', expected"),
        ([CAMERA, CAMERA], "intrinsics: 2 given for 3 images"),
        (torch.tensor([K]), "intrinsics: 1 given for 3 images"),
        ((0, 1, 2, 3), "intrinsics: got .* fx and fy positive"),
        ((1, -1, 2, 3), "intrinsics: got .* fx and fy positive"),
        ((INF, 1, 2, 3), "intrinsics: got .* finite"),
        ((1, 1, NAN, 3), "intrinsics: got .* finite"),
        ([CAMERA, CAMERA, (1, 2, 3)], r"intrinsics\[2\]: got \[1, 2, 3\], expected"),
        ([[500, 2, 320], *K[1:]], r"intrinsics: got .* expected K as"),
        (torch.eye(4), r"intrinsics: got .* \[:3, :3\], of the 4x4 matrix"),
        ([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]], "fx and fy positive"),
    ],
)
def test_odd_intrinsics(value: Any, message: str) -> None:
    with pytest.raises(HostError, match=message):
        parse_intrinsics(value, 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (500, [500.0, 500.0]),
        (np.float32(500), [500.0, 500.0]),
        (torch.tensor(500), [500.0, 500.0]),
        ([500, 400.5], [500.0, 400.5]),
        (torch.tensor([500.0, 400.5]), [500.0, 400.5]),
        ((torch.tensor(500), np.float64(400.5)), [500.0, 400.5]),
        ([None, 400.5], [None, 400.5]),
    ],
)
def test_focal(value: Any, expected: list[float | None]) -> None:
    assert parse_focal(value, 2) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "focal_px: got 0, expected a positive, finite focal length"),
        (-5.0, "focal_px: got -5.0"),
        (NAN, "focal_px: got nan"),
        (INF, "focal_px: got inf"),
        ("500", "focal_px: got '500'"),
        (True, "focal_px: got True"),
        ([500.0], "focal_px: 1 given for 2 images"),
        ([500.0, 0.0], r"focal_px\[1\]: got 0.0"),
        (torch.ones(2, 2), r"focal_px\[0\]: got \[1.0, 1.0\]"),
    ],
)
def test_odd_focal(value: Any, message: str) -> None:
    with pytest.raises(HostError, match=message):
        parse_focal(value, 2)


def test_values_in_messages() -> None:
    """Whole in one line, shortened, or as Python writes them: whatever a caller gives."""
    assert printable("a\nb\x1b[31m\udcff.png") == r"a\nb\x1b[31m\udcff.png"
    assert shortened("a\nb\x00") == "a\nb\\x00"
    assert shortened("x" * 200, 3) == "xxx... (200 characters)"
    assert quoted("a\n") == r"'a\n'"
    assert quoted([0] * 200).endswith("... (600 characters)")
    assert quoted(10**5000) == "a int"
