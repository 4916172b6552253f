"""Hosts that pad or pack pictures of several sizes: each token is led back to its place.

Three routes that know nothing of our layouts check them: pictures of coordinates, packed by the
library's own image processor and passed on by the tower, so that each token says where it comes
from; the library's raw hidden states; and each picture alone in a pass of its own.

Axes: B pictures or views, N tokens, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, attach, find_towers
from clipdepth_plugin.adapters.families.hf_qwen import QwenRule
from clipdepth_plugin.errors import (
    HeadMismatchError,
    ImageError,
    NoDepthError,
)
from tests.tiny.case import PATCH, WIDTH, tensors
from tests.tiny.clips import LONGER, one_clip
from tests.tiny.packed import EVERY_PACKED, PACKED
from tests.tiny.packed_case import Grid, PackedCase

MakeHead = Callable[..., DepthHead]
BY_NAME = {case.name: case for case in EVERY_PACKED}


def present(name: str) -> PackedCase:
    """A row of the table, where the installed transformers has its host."""
    if BY_NAME[name].absent:
        pytest.skip(f"transformers {transformers.__version__} lacks {name}")
    return BY_NAME[name]


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
    maps = (nn.Linear, nn.Conv2d, nn.Conv3d)
    weight = next(one for one in tower.patch_embed.modules() if isinstance(one, maps)).weight
    if weight.ndim == 2:  # of flattened patches
        per_channel = weight.shape[1] // 3
        for channel in range(3):
            first = slice(channel * per_channel, (channel + 1) * per_channel)
            of_channel = first if case.channels_first else slice(channel, None, 3)
            nn.init.constant_(weight.data[channel, of_channel], 1 / per_channel)
    else:
        for channel in range(3):
            nn.init.constant_(weight.data[channel, channel], 1 / weight[0, 0].numel())
    for norm in case.norms:
        identity = nn.Identity()
        identity.weight = tower.module.get_parameter(f"{norm}.weight")
        setattr(tower.module, norm, identity)


def views_of(batches: Sequence[TowerFeatures]) -> list[tuple[TowerFeatures, int]]:
    """(features, index in them) of each view, in order."""
    return [(one, index) for one in batches for index in range(one.batch)]


# Towers of transformers before 5.6 have an inner vision_model.
BEFORE_5_6 = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 6)


def all_levels(
    make_head: MakeHead, host: nn.Module, case: PackedCase, context: str = "mean"
) -> DepthHead:
    """A head that reads every level."""
    levels = tuple(range(case.depth, case.depth - 4, -1))
    return make_head(host, semantic_levels=levels, structural_levels=(2, 1, 0), context=context)


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


# --- videos -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_each_temporal_patch_of_a_video_is_a_view(name: str, make_head: MakeHead) -> None:
    """Two videos of different sizes and lengths, packed by the library's own video processor."""
    case = present(name)
    host = case.host()
    let_coordinates_through(host, case)
    shots: tuple[Grid, ...] = ((6, 4), (6, 4), (4, 8))
    frames = coordinates(shots)
    videos = [torch.stack([x for x in part for _ in range(2)]) for part in (frames[:2], frames[2:])]
    whole: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "do_resize": False}
    processor = transformers.Qwen2VLVideoProcessor(
        patch_size=PATCH, do_sample_frames=False, do_convert_rgb=False, **whole
    )
    packed = processor(videos=videos, return_tensors="pt")
    head = all_levels(make_head, host, case)
    with attach(host, head) as plugin, plugin.capture() as seen:
        host.model.get_video_features(
            packed["pixel_values_videos"], video_grid_thw=packed["video_grid_thw"]
        )
        passes = [views_of(one.batches) for one in seen]
    views = [view for one in passes for view in one]
    assert [one.grid for one, _ in views] == list(shots)
    for shot, (features, index) in enumerate(views):
        h, w = features.grid
        where_hw3 = features.levels[4][index, :, :3].reshape(h, w, 3).round().int() - 1
        assert where_hw3.tolist() == [[[y, x, shot] for x in range(w)] for y in range(h)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["minimax_m3_vl", "video_llama_3"])
def test_frames_in_one_grid_are_views(name: str, make_head: MakeHead) -> None:
    """Two frames, packed as a picture each, said to be one video; and a picture after them."""
    case = present(name)
    host = case.host()
    let_coordinates_through(host, case)
    shots: tuple[Grid, ...] = ((4, 6), (4, 6), (4, 8))
    inputs = case.pack(coordinates(shots))
    inputs["image_grid_thw"] = torch.tensor([[2, 4, 6], [1, 4, 8]])
    if "image_merge_sizes" in inputs:
        inputs["image_merge_sizes"] = inputs["image_merge_sizes"][1:]
    with attach(host, all_levels(make_head, host, case)) as plugin, plugin.capture() as seen:
        case.run(host, inputs)
        views = views_of(seen[-1].batches)
    assert [one.grid for one, _ in views] == list(shots)
    for shot, (features, index) in enumerate(views):
        h, w = features.grid
        where_hw2 = features.levels[4][index, :, :2].reshape(h, w, 2).round().int() - 1
        assert where_hw2.tolist() == [[[y, x] for x in range(w)] for y in range(h)], shot


@torch.no_grad()
@pytest.mark.parametrize("name", LONGER)
def test_each_tubelet_of_a_clip_is_a_view(name: str, make_head: MakeHead) -> None:
    """Clips of three tubelets; the tokens of each say their place and their time."""
    make_host, span = LONGER[name]
    case = present(name)
    shots: tuple[Grid, ...] = ((4, 4),) * 3
    torch.manual_seed(0)
    host = make_host(3 * span).eval()
    (key,) = case.pack(case.pictures())
    clip = one_clip(coordinates(shots), span, key)[key]
    clips = {key: torch.cat([clip, clip + 3])}
    alone = tensors(case.run(host, clips))
    with attach(host, all_levels(make_head, host, case)) as plugin:
        beside = tensors(case.run(host, clips))
        assert plugin.depth.shape == (6, 1, 4 * PATCH, 4 * PATCH)
    assert len(alone) == len(beside)
    assert all(map(torch.equal, alone, beside))
    let_coordinates_through(host, case)
    with attach(host, all_levels(make_head, host, case)) as plugin, plugin.capture() as seen:
        case.run(host, clips)
        views = views_of(seen[-1].batches)
    assert len(views) == 6
    for shot, (features, index) in enumerate(views):
        clip_number, tubelet = divmod(shot, 3)
        for tokens_BND in features.levels.values():
            where_hw3 = tokens_BND[index, :, :3].reshape(4, 4, 3).round().int() - 1
            more = 3 * clip_number
            expected = [[[y + more, x + more, tubelet + more] for x in range(4)] for y in range(4)]
            assert where_hw3.tolist() == expected


# --- what is not understood is refused ----------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("change", [{"window": None}, {"window": 1}, {"merge": 1}])
def test_an_order_that_the_positions_deny(change: dict[str, Any], make_head: MakeHead) -> None:
    case = present("qwen2_5_vl")
    host, inputs = case.host(), case.pack(case.pictures())
    with attach(host, all_levels(make_head, host, case)) as plugin:
        wanted = plugin._recorder.wanted
        rule = dataclasses.replace(cast("QwenRule", wanted.tower.rule), **change)
        plugin._recorder.wanted = dataclasses.replace(
            wanted, tower=dataclasses.replace(wanted.tower, rule=rule)
        )
        case.run(host, inputs)
        with pytest.raises(NoDepthError, match=r"view 0: the positions .* are not those of a grid"):
            _ = plugin.depths


def test_contexts_that_a_packed_tower_lacks(make_head: MakeHead) -> None:
    host = present("qwen2_vl").host()
    for context in ("pooled", "cls"):
        with pytest.raises(HeadMismatchError, match="this tower has 'mean'"):
            attach(host, make_head(host, context=context))


@torch.no_grad()
@pytest.mark.parametrize("name", ["idefics2", "siglip2", "mllama"])
def test_compiled_with_its_arguments_seen(name: str, make_head: MakeHead) -> None:
    """The hook on the tower is traced, too: no graph break, and padding is left out."""
    case = present(name)
    host, inputs = case.host(), case.pack(case.pictures())
    (tower,) = find_towers(host)
    tower.module.compile(backend="eager", fullgraph=True)
    try:
        case.run(host, inputs)
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError):
        assert BEFORE_5_6, "the newest compiles without us"
        pytest.skip(f"transformers {transformers.__version__} can't compile {name} whole itself")
    finally:
        tower.module._compiled_call_impl = None
        torch._dynamo.reset()
    with attach(host, all_levels(make_head, host, case)) as plugin:
        case.run(host, inputs)
        expected = plugin.depths
        tower.module.compile(backend="eager", fullgraph=True)
        case.run(host, inputs)
        close(plugin.depths, expected, 1e-5)
    torch._dynamo.reset()
