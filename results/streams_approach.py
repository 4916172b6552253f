"""How many frames late depth is while something comes straight at the camera: made-up patches.

16 x 16 patches whose tokens are found again exactly. After eight frames at rest, 6 x 6 of them or
all ("camera") come nearer by the same log depth in each frame. Each patch has noise of its own in
each frame, and each frame a scale's: normal, of the same standard deviation. The expected error is
0.1, as that of a head without confidence. Late: the error towards the depth before, less the error
of the same noise where nothing comes, over the depth that a frame changes; the mean over 6 seeds.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from streams_measure import Array

from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.stabilising import Stabiliser

SPEEDS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Log depth a frame."""
NOISE = (0.0, 0.02, 0.05, 0.1)
GRID = (16, 16)
STILL, SETTLED, LAST, SEEDS = 8, 10, 20, 6


class Approach(BaseModel):
    """Frames late at each of ``SPEEDS``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    comes: str
    noise: float
    at_first: tuple[float, ...]
    """The most in one of the first ``SETTLED`` frames after the start."""
    after: tuple[float, ...]
    """The mean over the frames from then to ``LAST``."""


def measure_approaches() -> tuple[Approach, ...]:
    """An object and a camera, with each noise."""
    found = []
    for comes, noise in itertools.product(("object", "camera"), NOISE):
        late = [_late(comes, noise, speed) for speed in SPEEDS]
        at_first = tuple(float(frames[:SETTLED].max()) for frames in late)
        after = tuple(float(frames[SETTLED:].mean()) for frames in late)
        found.append(Approach(comes=comes, noise=noise, at_first=at_first, after=after))
    return tuple(found)


def _late(comes: str, noise: float, speed: float) -> Array:
    """In each frame after the start."""
    errors = [
        _errors(comes, noise, speed, seed) - _errors(comes, noise, 0.0, seed)
        for seed in range(SEEDS)
    ]
    return np.array(np.mean(errors, axis=0) / speed)


@functools.cache
def _errors(comes: str, noise: float, speed: float, seed: int) -> Array:
    """Means of what comes; an object's beside the median of what stays."""
    coming = np.ones(GRID, dtype=bool)
    if comes == "object":
        coming[:] = False
        coming[5:11, 5:11] = True
    random, stabilise = np.random.default_rng(seed), Stabiliser()
    start = 0.7 + 0.3 * random.normal(size=GRID)
    tokens_NS = signatures(torch.from_numpy(random.normal(size=(start.size, 128))))
    errors = []
    for frame in range(STILL + LAST):
        after = frame + 1 - STILL
        now = start - speed * max(0, after) * coming
        seen = np.exp(now + noise * (random.normal(size=GRID) + random.normal()))
        depth = stabilise(torch.from_numpy(seen)[None, None].float(), None, tokens_NS, GRID)
        if after >= 1:
            error = np.log(depth[0, 0].numpy()) - now
            rest = 0.0 if coming.all() else np.median(error[~coming])
            errors.append(error[coming].mean() - rest)
    return np.array(errors)
