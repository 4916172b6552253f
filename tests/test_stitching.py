"""Maps of tiles become one map of the image."""

from __future__ import annotations

import pytest
import torch

from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.stitching import paste, stitch

NAN = torch.nan


def _row(*metres: float) -> torch.Tensor:
    return torch.tensor(metres)[None, None]


@pytest.mark.parametrize(
    ("tiles", "overview", "expected"),
    [
        ([(8.0, 16.0, NAN, NAN)], (2.0, 4.0, 5.0, NAN), (2.0, 4.0, 5.0, NAN)),
        ([(NAN, 1.0, 2.0, 9.0)], (7.0, 3.0, 6.0, 27.5), (7.0, 3.0, 6.0, 27.0)),
        ([(1.0, 2.0, NAN, NAN), (NAN, NAN, 7.0, NAN)], None, (1.0, 2.0, 7.0, NAN)),
        ([(1.0, 2.0, NAN, NAN), (NAN, 3.0, 4.0, NAN)], None, (1.0, 3.0, 4.0, NAN)),
        ([(NAN, NAN, NAN, NAN)], (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0)),
        ([], (1.0, 2.0, 3.0, NAN), (1.0, 2.0, 3.0, NAN)),
    ],
    ids=["scaled", "median", "no-overview", "later-wins", "padding-only", "overview-only"],
)
def test_stitches(
    tiles: list[tuple[float, ...]], overview: tuple[float, ...] | None, expected: tuple[float, ...]
) -> None:
    overview_1HW = None if overview is None else _row(*overview)

    whole_1HW = stitch([_row(*tile) for tile in tiles], overview_1HW)

    torch.testing.assert_close(whole_1HW, _row(*expected), equal_nan=True)


@pytest.mark.parametrize(
    ("tile", "overview", "expected"),
    [
        ((0.0, 1.0, 2.0, NAN), (0.0, 4.0, 8.0, 5.0), (0.0, 4.0, 8.0, 5.0)),
        ((0.0, 0.0, NAN, NAN), (2.0, 3.0, 4.0, 5.0), (0.0, 0.0, 4.0, 5.0)),
    ],
    ids=["both", "one"],
)
def test_zero_metres_lose_no_tile(
    tile: tuple[float, ...], overview: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """As a ReLU gives them."""
    stitched = stitch([_row(*tile)], _row(*overview))
    torch.testing.assert_close(stitched, _row(*expected))


def test_tiles_leave_no_seam_and_keep_their_middle() -> None:
    """Two tiles that are wrong in scale and slope; only their middles are theirs."""
    overview_1HW = torch.full((1, 16, 32), 2.0)
    slope_W = torch.linspace(0.8, 1.25, 16)
    tiles = [torch.full((1, 16, 32), NAN) for _ in range(2)]
    tiles[0][..., :16], tiles[1][..., 16:] = 5 * slope_W, slope_W
    log_HW = stitch(tiles, overview_1HW)[0].log()
    assert log_HW.diff(dim=1).abs().max() < 0.06  # 0.45 at the seam without fading
    middle_HW = log_HW[:, 6:10] - log_HW[:, 6:7]
    truth_HW = (slope_W.log() - slope_W[6].log())[6:10].expand(16, 4)
    torch.testing.assert_close(middle_HW, truth_HW)


def test_pastes_without_a_scale() -> None:
    overview_1HW, tile_1HW = torch.full((1, 16, 32), -2.0), torch.full((1, 16, 32), NAN)
    tile_1HW[..., :16] = -3.0
    whole_HW = paste([tile_1HW], overview_1HW)[0]
    assert bool((whole_HW[:, :12] == -3).all())
    assert bool((whole_HW[:, 16:] == -2).all())
    torch.testing.assert_close(whole_HW[0, 12:16], torch.tensor([-2.875, -2.625, -2.375, -2.125]))
    assert torch.equal(paste([tile_1HW]).isnan(), tile_1HW.isnan())
    with pytest.raises(HostError, match="expected one size"):
        paste([])


def test_tiles_that_overlap_leave_no_seam() -> None:
    """As Molmo2's: the later one fades into the earlier one, not into the overview."""
    overview_1HW = torch.full((1, 16, 32), -2.0)
    tiles = [torch.full((1, 16, 32), NAN) for _ in range(2)]
    tiles[0][..., :20], tiles[1][..., 12:] = -3.0, -1.0
    whole_HW = paste(tiles, overview_1HW)[0]
    assert whole_HW.diff(dim=1).abs().max() <= 0.5  # 1.1 where the later one fades into -2
    assert bool((whole_HW[:, :12] == -3).all())
    assert bool((whole_HW[:, 16:] == -1).all())


def test_leaves_the_given_maps_alone() -> None:
    overview_1HW, tile_1HW = _row(2.0, 4.0), _row(NAN, 1.0)

    stitch([tile_1HW], overview_1HW).zero_()

    torch.testing.assert_close(overview_1HW, _row(2.0, 4.0))
    torch.testing.assert_close(tile_1HW, _row(NAN, 1.0), equal_nan=True)


@pytest.mark.parametrize(
    ("tiles", "overview", "says"),
    [
        ([], None, "expected one size"),
        ([_row(1.0)], _row(1.0, 2.0), "expected one size"),
        ([_row(NAN, 1.0)], _row(1.0, NAN), "tile 0 and the overview share no area"),
    ],
)
def test_refuses(tiles: list[torch.Tensor], overview: torch.Tensor | None, says: str) -> None:
    with pytest.raises(HostError, match=says):
        stitch(tiles, overview)
