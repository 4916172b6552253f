"""How many frames late depth is while something comes straight at the camera: made-up patches.

16 x 16 patches whose tokens are found again exactly. After five frames at rest, 6 x 6 of them or
all ("camera") come nearer by the same log depth in each frame. Each patch has noise of its own in
each frame, and each frame a scale's: normal, of the same standard deviation. The expected error is
0.1, as that of a head without confidence. Late: the error towards the depth before, less the error
of the same noise where nothing comes, over the depth that a frame changes; the mean over 10 to 20
frames after the start and over 6 seeds.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.stabilising import Stabiliser

SPEEDS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Log depth a frame."""
NOISE = (0.02, 0.05, 0.1)
GRID = (16, 16)
STILL, FIRST, LAST, SEEDS = 5, 10, 20, 6


class Approach(BaseModel):
    """Frames late at each of ``SPEEDS``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    comes: str
    noise: float
    late: tuple[float, ...]


def measure_approaches() -> tuple[Approach, ...]:
    """An object and a camera, with each noise."""
    return tuple(
        Approach(comes=comes, noise=noise, late=tuple(_late(comes, noise, v) for v in SPEEDS))
        for comes in ("object", "camera")
        for noise in NOISE
    )


def _late(comes: str, noise: float, speed: float) -> float:
    errors = [
        _error(comes, noise, speed, seed) - _error(comes, noise, 0.0, seed) for seed in range(SEEDS)
    ]
    return float(np.mean(errors)) / speed


@functools.cache
def _error(comes: str, noise: float, speed: float, seed: int) -> float:
    """Mean of what comes; an object's beside the median of what stays."""
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
        if after >= FIRST:
            error = np.log(depth[0, 0].numpy()) - now
            rest = 0.0 if coming.all() else np.median(error[~coming])
            errors.append(error[coming].mean() - rest)
    return float(np.mean(errors))
