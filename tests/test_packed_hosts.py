"""Hosts that pad or pack pictures of several sizes: each token is led back to its place.

Three routes that know nothing of our layouts check them: pictures of coordinates, packed by the
library's own image processor and passed on by the tower, so that each token says where it comes
from; the library's raw hidden states; and each picture alone in a pass of its own.

Axes: B pictures or views, N tokens, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.adapters.running import in_one_pass
from clipdepth_plugin.errors import ImageError, NoDepthError
from tests.tiny.case import PATCH, WIDTH, tensors
from tests.tiny.coordinates import (
    BEFORE_5_6,
    MakeHead,
    all_levels,
    close,
    coordinates,
    let_coordinates_through,
    views_of,
)
from tests.tiny.packed import PACKED
from tests.tiny.packed_case import PackedCase


@pytest.fixture(params=PACKED, ids=lambda case: case.name)
def packed(request: pytest.FixtureRequest) -> PackedCase:
    """Every host in turn."""
    return cast("PackedCase", request.param)


def test_found(packed: PackedCase) -> None:
    (tower,) = find_towers(packed.host())
    inner = f"{packed.tower}.vision_model".lstrip(".")
    assert tower.path == packed.tower or (tower.path == inner and BEFORE_5_6)
    assert tower.family == packed.family
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


def raw_outputs(host: nn.Module, run: Callable[[], Any]) -> list[Tensor]:
    """What enters a tower's first block and what leaves each, (rows, D), by hooks of our own."""
    (tower,) = find_towers(host)
    raw: list[Tensor] = []

    def start(module: nn.Module, args: Any, kwargs: Any) -> None:
        # Named hidden_states or hidden_state, where it is named.
        raw.append(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple) else output)

    handles = [tower.blocks[0].register_forward_pre_hook(start, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in tower.blocks]
    run()
    for handle in handles:
        handle.remove()
    return [x.reshape(-1, x.shape[-1]) for x in raw]


@torch.no_grad()
def test_levels_are_the_librarys_own(packed: PackedCase, make_head: MakeHead) -> None:
    """Each level bit for bit the blocks' outputs; where each row belongs, coordinates tell."""
    told, where = packed.host(), packed.pack(coordinates(packed.grids))
    let_coordinates_through(told, packed)
    places = raw_outputs(told, lambda: packed.run(told, where))[0][:, :3].round().int() - 1
    row_of = {tuple(place): row for row, place in enumerate(places.tolist())}
    host, inputs = packed.host(), packed.pack(packed.pictures())
    raw = raw_outputs(host, lambda: packed.run(host, inputs))
    with (
        attach(host, all_levels(make_head, host, packed)) as plugin,
        plugin.capture() as seen,
    ):
        packed.run(host, inputs)
        views = views_of(seen[-1].batches)
    for (features, index), (picture, top, left, (h, w)) in zip(views, packed.views, strict=True):
        rows = [row_of[top + y, left + x, picture] for y in range(h) for x in range(w)]
        assert sorted(features.levels) == list(range(packed.depth + 1))
        for level, tokens_BND in features.levels.items():
            assert torch.equal(tokens_BND[index], raw[level][rows]), f"level {level}"


@torch.no_grad()
def test_pooled_vectors_are_the_librarys_own(packed: PackedCase, make_head: MakeHead) -> None:
    assert (packed.pooled is not None) == ("pooled" in packed.contexts)
    if packed.pooled is None:
        return
    host, inputs = packed.host(), packed.pack(packed.pictures())
    expected_BD = packed.pooled(host, inputs)
    with attach(host, all_levels(make_head, host, packed, "pooled")) as plugin:
        with plugin.capture() as seen:
            packed.run(host, inputs)
        contexts = [one.context for one in seen[-1].batches]
    assert torch.equal(torch.cat([x for x in contexts if x is not None]), expected_BD)


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


@torch.no_grad()
def test_the_tower_alone(packed: PackedCase, make_head: MakeHead) -> None:
    """``plugin(pixels, **tower_kwargs)`` and ``features``, with the pixels that a head may read."""
    if packed.name == "radio_packed":
        pytest.skip("what its tower is given alone is pictures")
    host, pictures = packed.host(), packed.pictures()
    inputs = packed.pack(pictures)
    head = DepthHead.for_host(
        host, "guided", context="mean", channels=(8, 8, 8), stem_channels=4
    ).eval()
    seen: dict[str, Any] = {}
    (tower,) = find_towers(host)
    handle = tower.module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    packed.run(host, inputs)
    handle.remove()
    names = inspect.signature(tower.module.forward).parameters
    kwargs = {**dict(zip(names, seen["args"], strict=False)), **seen["kwargs"]}
    pixels = kwargs.pop(next(iter(kwargs)))
    with attach(host, head) as plugin:
        packed.run(host, inputs)
        expected = plugin.depths
        close(list(plugin(pixels, **kwargs)), expected, 1e-5)
    features = plugin.features(pixels, **kwargs)
    views = views_of(features if isinstance(features, list) else [features])
    for (one, index), (picture, top, left, (h, w)) in zip(views, packed.views, strict=True):
        assert one.pixels is not None
        rows = slice(top * PATCH, (top + h) * PATCH)
        columns = slice(left * PATCH, (left + w) * PATCH)
        # Mllama's processor of transformers 4 rounds pictures to whole grey levels.
        tolerance = 1.01 / 255 if packed.tile and BEFORE_5_6 else 1e-6
        close(one.pixels[index], pictures[picture][:, rows, columns], tolerance)
    with pytest.raises(ImageError, match="pixel_values has shape"):
        plugin(pixels[..., None], **kwargs)


@torch.no_grad()
def test_pictures_packed_by_us(packed: PackedCase, make_head: MakeHead) -> None:
    """Pictures that we pack ourselves give the tokens of the library's own packing."""
    if packed.tile is not None and packed.name != "molmo2":
        pytest.skip("its tiles see each other")
    host, pictures = packed.host(), packed.pictures()
    (tower,) = find_towers(host)
    head = all_levels(make_head, host, packed)
    with attach(host, head) as plugin, plugin.capture() as seen:
        packed.run(host, packed.pack(pictures))
        expected = [view for one in seen for view in views_of(one.batches)]
    if packed.name == "gemma4":  # its packing undoes what its tower does
        pictures = [(one + 1) / 2 for one in pictures]
    given = [pictures[run] for run in in_one_pass(tower, [one.shape for one in pictures])]
    ours = [view for some in given for view in views_of(plugin.views_pass(some).batches)]
    for (one, row), (library, its_row) in zip(ours, expected, strict=True):
        assert one.grid == library.grid
        for level, tokens_BND in one.levels.items():
            close(tokens_BND[row], library.levels[level][its_row], 1e-5)
