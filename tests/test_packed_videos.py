"""Videos in packed hosts and towers of clips: each temporal patch or tubelet is a view.

Axes: B views, N tokens, D width, (h, w) patch grid.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from clipdepth_plugin import attach
from tests.tiny.case import PATCH, tensors
from tests.tiny.clips import LONGER, one_clip
from tests.tiny.coordinates import (
    MakeHead,
    all_levels,
    coordinates,
    let_coordinates_through,
    present,
    views_of,
)
from tests.tiny.packed_case import Grid


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
