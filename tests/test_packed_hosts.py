"""Hosts that pad or pack pictures of several sizes: each token is led back to its place.

Three routes that know nothing of our layouts check them: pictures of coordinates, packed by the
library's own image processor and passed on by the tower, so that each token says where it comes
from; the library's raw hidden states; and each picture alone in a pass of its own.

Axes: B pictures or views, N tokens, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, attach, find_towers
from clipdepth_plugin.errors import NoDepthError
from tests.tiny.case import PATCH, WIDTH, tensors
from tests.tiny.packed import PACKED, Grid, PackedCase

MakeHead = Callable[..., DepthHead]
BY_NAME = {case.name: case for case in PACKED}


@pytest.fixture(params=PACKED, ids=lambda case: case.name)
def packed(request: pytest.FixtureRequest) -> PackedCase:
    """Every host in turn."""
    return cast("PackedCase", request.param)


def coordinates(grids: Sequence[Grid]) -> list[Tensor]:
    """Pictures whose patches say where they are: red the row, green the column, blue the picture.

    Counted from 1, so that nothing of a picture is what padding is.
    """
    pictures = []
    for index, (h, w) in enumerate(grids):
        y_hw, x_hw = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        small_3hw = torch.stack([y_hw, x_hw, torch.full_like(y_hw, index)]).float() + 1
        patch = torch.ones(1, PATCH, PATCH)
        pictures.append(torch.kron(small_3hw, patch))
    return pictures


def let_coordinates_through(host: nn.Module, case: PackedCase) -> None:
    """Makes the tower's tokens the mean red, green and blue of their patches, in every level."""
    (tower,) = find_towers(host)
    for parameter in tower.module.parameters():
        nn.init.zeros_(parameter)  # a block without weights adds nothing to its input
    weight = next(tower.patch_embed.parameters())
    if weight.ndim == 2:  # of flattened patches, whose last axis is the channel
        for channel in range(3):
            nn.init.constant_(weight.data[channel, channel::3], 3 / weight.shape[1])
    else:
        for channel in range(3):
            nn.init.constant_(weight.data[channel, channel], 1 / weight[0, 0].numel())
    for norm in case.norms:
        setattr(tower.module, norm, nn.Identity())


def views_of(batches: Sequence[TowerFeatures]) -> list[tuple[TowerFeatures, int]]:
    """(features, index in them) of each view, in order."""
    return [(one, index) for one in batches for index in range(one.batch)]


def all_levels(
    make_head: MakeHead, host: nn.Module, case: PackedCase, context: str = "mean"
) -> DepthHead:
    """A head that reads every level."""
    levels = tuple(range(case.depth, case.depth - 4, -1))
    return make_head(host, semantic_levels=levels, structural_levels=(2, 1, 0), context=context)


def test_found(packed: PackedCase) -> None:
    (tower,) = find_towers(packed.host())
    assert (tower.path, tower.family) == (packed.tower, packed.family)
    assert (tower.depth, tower.width) == (packed.depth, WIDTH)
    assert (tower.patch_size, tower.contexts) == ((PATCH, PATCH), packed.contexts)


@torch.no_grad()
def test_each_token_comes_from_its_place(packed: PackedCase, make_head: MakeHead) -> None:
    host = packed.host()
    let_coordinates_through(host, packed)
    head = all_levels(make_head, host, packed)
    with attach(host, head) as plugin, plugin.capture() as seen:
        packed.run(host, packed.pack(coordinates(packed.grids)))
        views = views_of(seen[-1].batches)
    assert [one.grid for one, _ in views] == [grid for *_, grid in packed.views]
    for (features, index), (picture, top, left, (h, w)) in zip(views, packed.views, strict=True):
        for level, tokens_BND in features.levels.items():
            where_hw3 = tokens_BND[index, :, :3].reshape(h, w, 3).round().int() - 1
            expected = [[[top + y, left + x, picture] for x in range(w)] for y in range(h)]
            assert where_hw3.tolist() == expected, f"picture {picture}, level {level}"
        assert features.context is not None
        mean = torch.tensor([top + (h + 1) / 2, left + (w + 1) / 2, picture + 1])
        torch.testing.assert_close(features.context[index, :3], mean, rtol=0, atol=1e-4)


@torch.no_grad()
def test_host_is_not_touched(packed: PackedCase, make_head: MakeHead) -> None:
    host, inputs = packed.host(), packed.pack(packed.pictures())
    run: Callable[[], list[Tensor]] = lambda: tensors(packed.run(host, inputs))  # noqa: E731
    if packed.prompt is not None:
        told = packed.prompt(host, inputs)
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        run = lambda: [host(**told).logits, host.generate(**told, **options)]  # noqa: E731
    alone, hooks = run(), hook_count(host)
    with attach(host, all_levels(make_head, host, packed)) as plugin:
        beside = run()
        first = plugin.depths
        again = run()
        second = plugin.depths
    assert hook_count(host) == hooks
    for outputs in (beside, again, run()):
        assert len(outputs) == len(alone)
        assert all(map(torch.equal, outputs, alone))
    sizes = [(1, h * PATCH, w * PATCH) for *_, (h, w) in packed.views]
    assert [tuple(x.shape) for x in first] == sizes
    assert all(map(torch.equal, first, second))


def hook_count(host: nn.Module) -> dict[str, int]:
    """Module -> number of its hooks."""
    return {
        name: sum(
            len(table)
            for key, table in vars(module).items()
            if "_hooks" in key and isinstance(table, dict)
        )
        for name, module in host.named_modules()
    }


@torch.no_grad()
def test_a_picture_is_read_as_if_it_were_alone(packed: PackedCase, make_head: MakeHead) -> None:
    """Neither padding nor neighbours enter a picture's tokens, contexts or maps."""
    host, pictures = packed.host(), packed.pictures()
    for context in packed.contexts:
        head = all_levels(make_head, host, packed, context)
        with attach(host, head) as plugin, plugin.capture() as seen:
            for picture in pictures:
                packed.run(host, packed.pack([picture]))
            packed.run(host, packed.pack(pictures))
        *alone, together = seen
        views = views_of(together.batches)
        own_views = [view for one in alone for view in views_of(one.batches)]
        for (features, row), (own, own_row) in zip(views, own_views, strict=True):
            assert own.context is not None
            assert features.context is not None
            close(features.context[row], own.context[own_row], 1e-5)
            for level, tokens_BND in features.levels.items():
                close(tokens_BND[row], own.levels[level][own_row], 1e-5)
        close(together.depths, [map_1HW for one in alone for map_1HW in one.depths], 1e-4)


def close(first: Any, second: Any, tolerance: float) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


@torch.no_grad()
def test_reading_views_of_several_sizes(packed: PackedCase, make_head: MakeHead) -> None:
    host = packed.host()
    with attach(host, all_levels(make_head, host, packed)) as plugin:
        with plugin.capture() as seen:
            packed.run(host, packed.pack(packed.pictures()))
        if packed.tile is None:
            assert isinstance(seen[0].features, list)
            with pytest.raises(NoDepthError, match=r"views of several sizes .*\.depths"):
                _ = plugin.depth
            maps = plugin.predict()
            assert isinstance(maps, list)
            close(maps, plugin.depths, 0)
        one = plugin.predict((20, 30))
        assert isinstance(one, Tensor)
        assert one.shape == (len(packed.views), 1, 20, 30)
        packed.run(host, packed.pack(packed.pictures([packed.grids[-1]] * 2)))
        h, w = packed.tile or packed.grids[-1]
        assert plugin.depth.shape[1:] == (1, h * PATCH, w * PATCH)


# --- what padding is not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[1, 1:, 1:].fill_(0), "are no rectangle"),
        (lambda mask: mask[1].fill_(0), "view 1 is padding alone"),
    ],
)
def test_masks_that_make_no_map(
    change: Callable[[Tensor], Any], message: str, make_head: MakeHead
) -> None:
    host = BY_NAME["idefics2"].host()
    tower: Any = find_towers(host)[0].module
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    change(mask_Bhw)
    with torch.no_grad(), attach(host, make_head(host, context="mean")) as plugin:
        tower(torch.randn(2, 3, 32, 32), patch_attention_mask=mask_Bhw)
        with pytest.raises(NoDepthError, match=message):
            _ = plugin.depth


def test_unfinished_patches_belong_to_the_picture(make_head: MakeHead) -> None:
    """Pixels beyond the last whole patch: a map has them where its picture reaches them."""
    host = BY_NAME["idefics2"].host()
    head = make_head(host, context="mean")
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    mask_Bhw[1, :, 2:] = False
    with torch.no_grad(), attach(host, head) as plugin:
        depths = plugin(torch.randn(2, 3, 35, 33), patch_attention_mask=mask_Bhw)
    assert [tuple(x.shape) for x in depths] == [(1, 35, 33), (1, 35, 16)]
