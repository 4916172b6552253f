"""Which pixels each protocol counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.protocols import PROTOCOLS, ProtocolName, get_protocol


def extent(valid: Tensor) -> tuple[int, int, int, int]:
    rows, columns = valid.any(1).nonzero()[:, 0], valid.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def test_nyu_counts_its_crop_and_its_open_range() -> None:
    nyu = PROTOCOLS["nyu"]
    assert nyu.flip
    depth = torch.full((480, 640), 2.0)
    assert extent(nyu.valid(depth)) == (45, 471, 41, 601)
    assert int(nyu.valid(depth).sum()) == (471 - 45) * (601 - 41)
    for value, counts in ((0.0, 0), (1e-3, 0), (2e-3, 1), (9.99, 1), (10.0, 0), (math.nan, 0)):
        assert bool(nyu.valid(torch.full((480, 640), value)).any()) == bool(counts), value


@pytest.mark.parametrize(
    ("name", "box"),
    [("kitti-garg", (153, 371, 44, 1197)), ("kitti-eigen", (124, 342, 44, 1197))],
)
def test_kitti_crops_at_375_by_1242(name: ProtocolName, box: tuple[int, int, int, int]) -> None:
    protocol = PROTOCOLS[name]
    assert extent(protocol.valid(torch.full((375, 1242), 50.0))) == box
    assert not protocol.valid(torch.full((375, 1242), 80.0)).any()


def test_kb_crop_is_352_by_1216_at_the_bottom() -> None:
    protocol = get_protocol("kitti-garg", kb_crop=True)
    assert protocol.seen(375, 1242) == (23, 375, 13, 1229)
    assert PROTOCOLS["kitti-garg"].seen(375, 1242) == (0, 375, 0, 1242)
    # Where the crop's box is wider than what the tower sees, the smaller one counts.
    assert extent(protocol.valid(torch.full((352, 1300), 5.0)))[2:] == (46, 1253)
    assert extent(protocol.valid(torch.full((376, 1400), 5.0)))[2:] == (92, 1308)
    with pytest.raises(DataError, match="no kb-crop of 352 x 1216"):
        protocol.valid(torch.full((100, 100), 5.0), "a")


def test_rgbd_takes_the_range_it_is_given() -> None:
    protocol = get_protocol("rgbd", depth_range=(0.5, 3.0), flip=True)
    depth = torch.tensor([[0.0, 0.4, 1.0, 2.9, 3.5, math.inf]])
    assert protocol.valid(depth).tolist() == [[False, False, True, True, False, False]]
    assert protocol.flip
    assert not PROTOCOLS["rgbd"].valid(torch.tensor([[0.0, math.inf]])).any()


def test_what_a_protocol_does_not_take() -> None:
    with pytest.raises(DataError, match="there are nyu, kitti-garg, kitti-eigen, rgbd"):
        get_protocol("kitti")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="range of its own"):
        get_protocol("nyu", depth_range=(1, 2))
    with pytest.raises(DataError, match="only the KITTI protocols"):
        get_protocol("nyu", kb_crop=True)
    with pytest.raises(DataError, match="0 < low < high"):
        get_protocol("rgbd", depth_range=(2, 1))
    with pytest.raises(DataError, match="room/7: 240 x 320 pixels, the protocol 'nyu'"):
        PROTOCOLS["nyu"].valid(torch.ones(240, 320), "room/7")
