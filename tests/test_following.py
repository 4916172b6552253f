"""Depth that goes on changing is followed: made-up videos whose true depth is known."""

from __future__ import annotations

import pytest
import torch

from clipdepth_plugin.maps.stabilising import Stabiliser
from tests.tiny.world import GRID, NOISE, WIDTH, World, patches, push, steps, whole


@pytest.mark.parametrize("speed", [0.02, 0.05])
def test_a_camera_that_walks_on_is_followed(speed: float) -> None:
    """Some percent nearer with each frame: after a while depth is at most a frame late."""
    world, stabilise = World(11), Stabiliser()
    tokens, truth = world.seen()
    errors = []
    for frame in range(60):
        now = truth - speed * frame
        error = patches(push(stabilise, world.predicted(now), world.noisy(tokens))) - now
        errors.append(float(error.mean()))
    # The noise of scales: the mean of 30 frames of standard deviation NOISE.
    assert abs(sum(errors[30:]) / 30) < speed + NOISE / 30**0.5


@pytest.mark.parametrize(("speed", "noise"), [(0.005, 0.02), (0.02, 0.05), (0.05, 0.1), (0.08, 0)])
def test_an_object_that_comes_nearer_is_followed(speed: float, noise: float) -> None:
    """However slowly, under the noise of a frame: on average less than a frame late."""
    lags = []
    for seed in range(4):
        world, stabilise = World(20 + seed), Stabiliser()
        tokens, truth = world.seen()
        thing = torch.zeros(GRID, dtype=torch.bool)
        thing[2:6, 2:6] = True
        for frame in range(28):
            now = truth - speed * max(0, frame - 4) * thing
            depth = whole(now + noise * (world.normal(1) + world.normal(*GRID)))
            error = patches(push(stabilise, depth, world.noisy(tokens))) - now
            if frame >= 14:
                lags.append((error[thing].mean() - error[~thing].median()) / speed)
    assert torch.stack(lags).mean() < 1


def test_an_object_that_stops_is_at_rest_soon() -> None:
    """The change that it had carries it on by less than two frames' way, and not for long."""
    world, stabilise = World(25), Stabiliser()
    tokens, truth = world.seen()
    thing = torch.zeros(GRID, dtype=torch.bool)
    thing[2:6, 2:6] = True
    errors = []
    for frame in range(50):
        now = truth - 0.05 * min(frame, 20) * thing
        error = patches(push(stabilise, whole(now), world.noisy(tokens))) - now
        errors.append(float(error[thing].mean() - error[~thing].median()) / 0.05)
    assert max(map(abs, errors[20:])) < 2
    assert max(map(abs, errors[40:])) < 0.3


def test_what_is_not_found_takes_the_correction_around_it() -> None:
    """A patch that looks otherwise in each frame flickers no more than those around it."""
    world, stabilise = World(31), Stabiliser()
    tokens, truth = world.seen()
    raw, steady = [], []
    for _ in range(30):
        smooth = 0.6 * NOISE * world.normal(1)  # an error of the middle, as errors are: smooth
        bump = 0.2 * NOISE * world.normal(*GRID)
        bump[2:7, 2:7] += smooth
        tokens[4, 4] = world.normal(WIDTH)
        out = push(stabilise, whole(truth + bump), world.noisy(tokens))
        raw.append(bump[4, 4][None])
        steady.append((patches(out) - truth)[4, 4][None])
    assert steps(steady) < 0.6 * steps(raw)
