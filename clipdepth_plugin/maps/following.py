"""Patches' log depth: averaged over the frames in which they were seen, and followed as it changes.

An average alone lags behind what changes steadily, by four frames at a memory of 0.8, and a gate
notices only what changes by more than the noise in one frame. So each patch has a change a frame,
too, which its surprises correct little by little (double exponential smoothing): what comes
straight at the camera, however slowly, is followed after some frames without a lag that stays.

Axes: N = h * w patches (row-major), K a patch and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.matching import Floats, Matches, around

SCALE_MEMORY = 0.8
"""Largest share of the frame's scale that is taken from the frames before."""
SCALE_TREND = 0.03
"""Share of a scale's surprise by which its trend is corrected, so that a camera that
walks on towards a wall is not followed late."""
PATCH_MEMORY = 0.8
"""As ``SCALE_MEMORY``, of a patch's own error."""
PATCH_TREND = 0.06
"""As ``SCALE_TREND``, of a patch's own change. With the memory it settles in some ten frames and
overshoots little."""
ERRORS = 2.0
"""A patch that differs from before by this many times its expected error is mostly not averaged."""
SPREADS = 8.0
"""Nor one that differs by so many times the frame's median difference: where depth hardly flickers,
what moves a little is not kept waiting for its change to be learnt."""


@dataclass(frozen=True)
class Followed:
    """What is known of the last frame's patches.

    Attributes:
        log_depth_N: Stabilised.
        change_N: By how much it changes in a frame, beside the frame's scale.
        age_N: How many frames, weighted, each was seen in.
        frames: How many there were since the start or a cut.
        trend: By how much log depth as a whole falls in a frame.
    """

    log_depth_N: Floats
    change_N: Floats
    age_N: Floats
    frames: int
    trend: float


def first(log_depth_N: Floats) -> Followed:
    """Of a first frame."""
    still_N = np.zeros_like(log_depth_N)
    return Followed(log_depth_N, still_N, np.ones_like(log_depth_N), 1, 0.0)


def follow(
    before: Followed, log_depth_N: Floats, matches: Matches, error_N: Floats | float, grid: Size
) -> tuple[Floats, Followed]:
    """What is added to each patch's log depth of the next frame, and what is then known.

    ``error_N``: expected, of log depth.
    """
    found_N = matches.weight_N > 0
    kept_3N = np.stack([before.log_depth_N + before.change_N, before.change_N, before.age_N])
    expected_N, change_N, age_N = (kept_3N[:, matches.near_KN] * matches.share_KN).sum(axis=1)
    differs_N = expected_N - log_depth_N
    scale = float(np.median(differs_N[found_N]))
    own_N = differs_N - scale
    spread = SPREADS * float(np.median(np.abs(own_N[found_N]))) + 1e-6
    gate_N = np.minimum(ERRORS * error_N, spread).astype(own_N.dtype)
    weight_N = matches.weight_N * np.exp(-((own_N / gate_N) ** 2))
    age_N = 1 + weight_N * age_N
    memory_N = (1 - 1 / age_N).clip(max=PATCH_MEMORY)
    # By the weight once more: an old patch that was hardly found again keeps its own depth.
    surprise_N = weight_N * own_N
    # Errors are alike beside each other, and so are changes: a patch that was not found takes the
    # correction of those around it, and a change is corrected by the mean surprise around.
    corrected_3N = np.stack([memory_N * surprise_N, weight_N, surprise_N])
    beside_N, weighs_N, surprise_N = corrected_3N[:, around(grid)].mean(axis=1)
    own_correction_N = np.where(found_N, corrected_3N[0], beside_N / (weighs_N + 0.1))
    scale_memory = min(1 - 1 / (before.frames + 1), SCALE_MEMORY)
    scale_surprise = scale + before.trend
    correction_N = scale_memory * scale_surprise + own_correction_N
    return correction_N, Followed(
        log_depth_N + correction_N,
        found_N * change_N - PATCH_TREND * surprise_N,
        age_N,
        before.frames + 1,
        before.trend - SCALE_TREND * scale_surprise,
    )
