"""A camera's depth held steady from frame to frame, by matching patch tokens.

Most flicker of single-image depth is a scale and slow errors of log depth that change with each
frame. So each patch is looked up in the frame before: where its token is found again, the error is
averaged over the frames in which the patch was seen; where it is not (what moves differently from
how it looks, what has come into view), depth is the frame's own. What is corrected is smooth, one
number a patch: fine detail is always the frame's own, and edges do not lag.

Axes: N = h * w patch tokens (row-major), D width, S of every second channel, (h, w) patch grid,
H W a native map's size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.arguments import Size

SCALE_MEMORY = 0.8
"""Largest share of the frame's scale that is taken from the frames before."""
TREND = 0.02
"""Share of a scale's surprise by which its trend is corrected, so that a camera that
walks on towards a wall is not followed late."""
PATCH_MEMORY = 0.8
"""The same of a patch's own error."""
ERRORS = 2.0
"""A patch that differs from before by this many times its expected error is mostly not averaged."""
UNKNOWN_ERROR = 0.1
"""Of log depth, for heads without confidence."""
LEAST_ERROR = 0.03
LIKENESS = (-0.5, 0.0)
"""Where a match begins to count and where it counts fully: 0, as similar as neighbouring patches
are on average; 1, equal."""
CUT = 0.25
"""With a smaller share of patches found again, the picture is another one. Of the videos that
results/streams.md is about, frames share 0.27 or more, and pictures of two places 0.25 or less."""
_CHANNELS = 2  # every second is compared


def signatures(tokens: Tensor) -> Tensor:
    """What is compared of tokens (..., D): (..., S) float32 of length 1."""
    return F.normalize(tokens.detach()[..., ::_CHANNELS].float(), dim=-1)


@dataclass(frozen=True)
class _Before:
    """What is kept of the last frame.

    Attributes:
        signatures_NS: Its tokens.
        log_depth_N: Its stabilised patches.
        age_N: How many frames, weighted, each patch was seen in.
        frames: How many there were since the start or a cut.
        trend: By how much log depth as a whole changes in a frame.
    """

    signatures_NS: Tensor
    log_depth_N: Tensor
    age_N: Tensor
    grid: Size
    frames: int
    trend: Tensor


class Stabiliser:
    """Takes one camera's frames in order; keeps a fixed amount of memory."""

    def __init__(self) -> None:
        self._before: _Before | None = None

    def __call__(
        self, depth_11HW: Tensor, log_scale_11HW: Tensor | None, signatures_NS: Tensor, grid: Size
    ) -> Tensor:
        """The next frame's depth, stabilised.

        Args:
            depth_11HW: Native depth, before a camera's scale. All NaN (no picture) comes back as it
                is, and the frame counts as dropped.
            log_scale_11HW: Log of its expected error, of heads with confidence.
            signatures_NS: ``signatures`` of its tokens.
            grid: The patch grid (h, w).

        Returns:
            (1, 1, H, W), a tensor of its own.
        """
        log_depth_N = _pooled(depth_11HW, grid).clamp(min=1e-6).log()
        before = self._before
        like = (
            before is not None
            and before.grid == grid
            and before.signatures_NS.shape == signatures_NS.shape
            and before.signatures_NS.device == signatures_NS.device
        )
        if before is None or not like:
            return self._start(depth_11HW, log_depth_N, signatures_NS, grid)
        match_N, weight_N, sure_N = _matches(signatures_NS, before.signatures_NS, grid)
        share, known = torch.stack([sure_N.float().mean(), log_depth_N.sum()]).tolist()
        if math.isnan(known):
            return depth_11HW.clone()
        if share < CUT:
            return self._start(depth_11HW, log_depth_N, signatures_NS, grid)
        error_N = _expected_error(log_scale_11HW, grid, log_depth_N)
        correction_N, age_N, trend = _correction(before, log_depth_N, match_N, weight_N, error_N)
        self._before = _Before(
            signatures_NS, log_depth_N + correction_N, age_N, grid, before.frames + 1, trend
        )
        return depth_11HW * _enlarged(correction_N.exp().view(grid), depth_11HW)

    def reset(self) -> None:
        """The next frame is a first one."""
        self._before = None

    def _start(
        self, depth_11HW: Tensor, log_depth_N: Tensor, signatures_NS: Tensor, grid: Size
    ) -> Tensor:
        self._before = None
        if bool(log_depth_N.isfinite().all()):
            self._before = _Before(
                signatures_NS,
                log_depth_N,
                torch.ones_like(log_depth_N),
                grid,
                1,
                log_depth_N.new_zeros(()),
            )
        return depth_11HW.clone()


def _pooled(map_11HW: Tensor, grid: Size) -> Tensor:
    """(N,) means over the patches."""
    return F.adaptive_avg_pool2d(map_11HW, grid).flatten()


def _enlarged(map_hw: Tensor, like_11HW: Tensor) -> Tensor:
    """As ``decoders.blocks.resize``, by two products: a sixth of its time on a CPU."""
    (h, w), (height, width) = map_hw.shape, like_11HW.shape[-2:]
    rows_Hh = _shares(h, height, like_11HW.device)
    return rows_Hh @ map_hw @ _shares(w, width, like_11HW.device).T


@functools.lru_cache(maxsize=32)
def _shares(cells: int, size: int, device: torch.device) -> Tensor:
    """(size, cells): what each of ``cells`` has in a line of ``size``."""
    eye_1CC = torch.eye(cells, device=device)[None]
    return F.interpolate(eye_1CC, size, mode="linear", align_corners=False)[0].T.contiguous()


def _expected_error(log_scale_11HW: Tensor | None, grid: Size, like_N: Tensor) -> Tensor:
    if log_scale_11HW is None:
        return torch.full_like(like_N, UNKNOWN_ERROR)
    return _pooled(log_scale_11HW, grid).exp().clamp(min=LEAST_ERROR)


def _matches(now_NS: Tensor, then_NS: Tensor, grid: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch's most similar one of the frame before, and how much that counts (0 to 1).

    It counts where that one's own most similar patch is this one or a neighbour, and where a
    neighbour of this one has moved alike. The last: where two have.
    """
    likeness_NN = now_NS @ then_NS.T
    best_N, match_N = likeness_NN.max(dim=1)
    back_N = likeness_NN.max(dim=0).indices[match_N]  # argmax takes twice as long on a CPU
    place_2N = _places(grid, now_NS.device)
    mutual_N = (place_2N[:, back_N] - place_2N).abs().amax(dim=0) <= 1
    moved_2hw = (place_2N[:, match_N] - place_2N).view(2, *grid)
    down_hw = moved_2hw.diff(dim=1).abs().amax(dim=0) <= 1
    right_hw = moved_2hw.diff(dim=2).abs().amax(dim=0) <= 1
    alike_hw = torch.zeros(grid, dtype=torch.uint8, device=now_NS.device)
    alike_hw[1:] += down_hw
    alike_hw[:-1] += down_hw
    alike_hw[:, 1:] += right_hw
    alike_hw[:, :-1] += right_hw
    now_hwS = now_NS.view(*grid, -1)
    beside = (now_hwS[:, 1:] * now_hwS[:, :-1]).sum(dim=-1)
    # Of a grid of one column there are none beside each other.
    usual = beside.mean() if beside.numel() else now_NS.new_zeros(())
    low, high = LIKENESS
    above_N = (best_N - usual) / (1 - usual).clamp(min=1e-6)
    weight_N = ((above_N - low) / (high - low)).clamp(0, 1)
    alike_N = alike_hw.flatten()
    weight_N = weight_N * (mutual_N & (alike_N >= 1))
    return match_N, weight_N, (weight_N > 0) & (alike_N >= 2)


@functools.lru_cache(maxsize=32)
def _places(grid: Size, device: torch.device) -> Tensor:
    """(2, N) rows and columns of patches."""
    rows_h, columns_w = (torch.arange(side, device=device) for side in grid)
    return torch.stack(torch.meshgrid(rows_h, columns_w, indexing="ij")).flatten(1)


def _correction(
    before: _Before, log_depth_N: Tensor, match_N: Tensor, weight_N: Tensor, error_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to each patch's log depth, its new age, and the new trend."""
    differs_N = before.log_depth_N[match_N] - log_depth_N
    scale = torch.where(weight_N > 0, differs_N, torch.nan).nanmedian()
    own_N = differs_N - scale
    weight_N = weight_N * torch.exp(-((own_N / (ERRORS * error_N)) ** 2))
    age_N = 1 + weight_N * before.age_N[match_N]
    memory_N = (1 - 1 / age_N).clamp(max=PATCH_MEMORY)
    scale_memory = min(1 - 1 / (before.frames + 1), SCALE_MEMORY)
    # By the weight once more: an old patch that was hardly found again keeps its own depth.
    surprise = scale + before.trend
    correction_N = scale_memory * surprise + weight_N * memory_N * own_N
    return correction_N, age_N, before.trend - TREND * surprise
