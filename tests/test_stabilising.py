"""The stabiliser on made-up videos whose true depth is known: what is seen is a window of a world.

Axes: N patches, S channels that are compared, H W a map's size, (h, w) patch grid.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.stabilising import Stabiliser
from tests.tiny.world import GRID, NOISE, UP, WIDTH, World, patches, push, steps, whole


def test_a_static_camera_flickers_less_than_half() -> None:
    world, stabilise = World(), Stabiliser()
    tokens, truth = world.seen()
    raw, steady = [], []
    for _ in range(40):
        depth = world.predicted(truth)
        raw.append(patches(depth) - truth)
        steady.append(patches(push(stabilise, depth, world.noisy(tokens))) - truth)
    assert steps(steady) < 0.5 * steps(raw)
    assert torch.stack(steady[5:]).abs().mean() < 0.7 * torch.stack(raw[5:]).abs().mean()


@pytest.mark.parametrize("every", [1, 2])
def test_a_moving_camera_finds_the_static_scene_again(every: int) -> None:
    """One patch a frame, up and down; ``every`` second frame alone is read where some are lost."""
    world, stabilise = World(1), Stabiliser()
    raw, steady = [], []
    for frame in range(0, 60, every):
        row, column = 8 + abs(frame % 16 - 8), 8
        tokens, truth = world.seen(row, column)
        depth = world.predicted(truth)
        out = push(stabilise, depth, world.noisy(tokens))
        cells = [torch.full((24, 24), torch.nan) for _ in range(2)]
        for cell, one in zip(cells, (depth, out), strict=True):
            cell[row : row + GRID[0], column : column + GRID[1]] = patches(one) - truth
        raw.append(cells[0])
        steady.append(cells[1])
    assert steps(steady) < 0.6 * steps(raw)


def test_a_moving_object_does_not_lag() -> None:
    world, stabilise = World(2), Stabiliser()
    background, truth = world.seen()
    thing = world.normal(3, 3, WIDTH)
    before = torch.zeros(GRID, dtype=torch.bool)
    errors, changed, raw_still, still = [], [], [], []
    for frame in range(24):
        tokens, log_depth, covered = background.clone(), truth.clone(), torch.zeros_like(before)
        column = frame % 6
        tokens[2:5, column : column + 3] = thing
        log_depth[2:5, column : column + 3] = truth.min() - 1.5
        covered[2:5, column : column + 3] = True
        depth = world.predicted(log_depth)
        error = patches(push(stabilise, depth, world.noisy(tokens))) - log_depth
        if frame:
            errors.append((error - error.median())[covered != before])
            changed.append((patches(depth) - log_depth)[covered != before])
        raw_still.append((patches(depth) - log_depth)[6:])
        still.append(error[6:])
        before = covered
    # Where the object came or left, the depth of the same frame is there: no more than its error.
    assert torch.cat(errors).abs().max() < 0.5
    assert torch.cat(errors).abs().mean() < 1.2 * torch.cat(changed).abs().mean()
    assert steps(still) < 0.5 * steps(raw_still)


def test_a_cut_starts_anew() -> None:
    stabilise = Stabiliser()
    for seed in (3, 4, 5):
        world = World(seed)
        tokens, truth = world.seen()
        for frame in range(4):
            depth = world.predicted(truth)
            out = push(stabilise, depth, world.noisy(tokens))
            assert torch.equal(out, depth) == (frame == 0)


def test_an_exposure_change_is_no_cut() -> None:
    """It moves all tokens alike; depth is held as if nothing had happened."""
    world, stabilise = World(6), Stabiliser()
    tokens, truth = world.seen()
    drift = world.normal(WIDTH)
    raw, steady = [], []
    for frame in range(40):
        exposed = tokens * (1.5 if frame >= 20 else 1.0) + drift * (0.6 if frame >= 20 else 0.0)
        depth = world.predicted(truth)
        raw.append(patches(depth) - truth)
        steady.append(patches(push(stabilise, depth, world.noisy(exposed))) - truth)
    assert steps(steady) < 0.5 * steps(raw)
    assert steps(steady[15:27]) < 0.6 * steps(raw[15:27])


def test_a_minute_of_the_same_picture_stays_as_it_is() -> None:
    world, stabilise = World(7), Stabiliser()
    tokens, truth = world.seen()
    depth = world.predicted(truth)
    first = push(stabilise, depth, tokens)
    sizes = set()
    for _ in range(1800):
        last = push(stabilise, depth, tokens)
        before = stabilise._before
        assert before
        kept = (before.signatures_NS, *dataclasses.astuple(before.followed))
        sizes.add(sum(x.nbytes for x in kept if isinstance(x, Tensor | np.ndarray)))
    torch.testing.assert_close(last, first, rtol=1e-4, atol=0)
    assert len(sizes) == 1


def test_a_minute_of_a_noisy_picture_does_not_drift() -> None:
    world, stabilise = World(8), Stabiliser()
    tokens, truth = world.seen()
    errors = [
        patches(push(stabilise, world.predicted(truth), world.noisy(tokens))) - truth
        for _ in range(1800)
    ]
    halves = torch.stack(errors[100:]).mean(dim=(1, 2)).chunk(2)
    assert all(abs(float(half.mean())) < 0.02 for half in halves)
    assert torch.stack(errors[-100:]).abs().max() < 5 * NOISE


def test_a_picture_without_depth_is_a_dropped_frame() -> None:
    world, stabilise, other = World(9), Stabiliser(), Stabiliser()
    tokens, truth = world.seen()
    nothing = torch.full_like(whole(truth), torch.nan)
    assert push(stabilise, nothing, world.normal(*GRID, WIDTH)).isnan().all()  # the first one, too
    for frame in range(6):
        depth, seen = world.predicted(truth), world.noisy(tokens)
        if frame == 3:
            assert push(stabilise, nothing, world.normal(*GRID, WIDTH)).isnan().all()
        torch.testing.assert_close(push(stabilise, depth, seen), push(other, depth, seen))


@pytest.mark.parametrize("grid", [(4, 16), (16, 4), (1, 64), (64, 1), (2, 2), (1, 1)])
def test_any_grid(grid: tuple[int, int]) -> None:
    stabilise, random = Stabiliser(), torch.Generator().manual_seed(0)
    tokens = torch.randn(grid[0] * grid[1], WIDTH, generator=random)
    for _ in range(3):
        depth = torch.rand(1, 1, 3 * grid[0], 3 * grid[1], generator=random) + 1
        out = stabilise(depth, None, signatures(tokens), grid)
        assert out.shape == depth.shape
        assert bool(((out > 0.4) & (out < 4)).all())


def test_another_grid_or_width_starts_anew() -> None:
    stabilise = Stabiliser()
    for grid, width in (((8, 8), 128), ((4, 8), 128), ((4, 8), 64), ((8, 4), 64)):
        depth = torch.rand(1, 1, *grid) + 1
        tokens = signatures(torch.randn(grid[0] * grid[1], width))
        assert torch.equal(stabilise(depth, None, tokens, grid), depth)


def test_zero_metres_stay_and_tell_nobody() -> None:
    """A ReLU gives them."""
    world, stabilise = World(10), Stabiliser()
    tokens, truth = world.seen()
    for frame in range(4):
        depth = world.predicted(truth)
        if frame % 2:
            depth[..., : 3 * UP] = 0
        out = push(stabilise, depth, tokens)
        assert torch.equal(out == 0, depth == 0)
        ratio = (out / depth)[depth > 0]
        assert bool((ratio > 0.3).all())
        assert bool((ratio < 3).all())


def test_a_patch_between_patches_is_between_their_depths() -> None:
    """A slanted wall that moves by half a patch a frame: there and back."""
    rows = torch.arange(24.0).repeat_interleave(2)[:, None].expand(48, 24)
    world, stabilise = World(30), Stabiliser()
    fine = torch.randn(49, 24, WIDTH, generator=world.random)
    tokens = fine[:-1] + fine[1:]  # at half a patch, as similar to both
    log_depth = 0.15 * rows + 0.075 * (torch.arange(48) % 2)[:, None]
    errors = []
    for frame in range(24):
        top = 8 + abs(frame % 8 - 4)
        window = slice(top, top + 2 * GRID[0], 2), slice(8, 8 + GRID[1])
        now = log_depth[window]
        out = push(stabilise, whole(now), world.noisy(tokens[window]))
        error = (patches(out) - now)[1:-1]
        errors.append((error - error.median()).abs())
    assert torch.stack(errors[1:]).mean() < 0.023
