"""A camera's depth held steady from frame to frame, by matching patch tokens.

Most flicker of single-image depth is a scale and slow errors of log depth that change with each
frame. So each patch is looked up in the frame before: where its token is found again, the error is
averaged over the frames in which the patch was seen (``following``); where it is not (what has come
into view), it is taken from the patches around. What is corrected is smooth, one number a patch:
fine detail is always the frame's own, and edges do not lag.

Axes: N = h * w patch tokens (row-major), S channels that are compared, K a patch and its
neighbours, (h, w) patch grid, H W a native map's size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.following import Followed, first, follow
from clipdepth_plugin.maps.matching import Floats, find

UNKNOWN_ERROR = 0.1
"""Of log depth, for heads without confidence."""
LEAST_ERROR = 0.03
CUT = 0.25
"""With a smaller share of patches found again, the picture is another one. Of the videos that
results/streams.md is about, frames share 0.27 or more, and pictures of two places 0.25 or less."""


@dataclass(frozen=True)
class _Before:
    """What is kept of the last frame.

    Attributes:
        signatures_NS: Its tokens.
        followed: Its patches.
    """

    signatures_NS: Tensor
    followed: Followed
    grid: Size


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
        log_depth = _pooled(depth_11HW, grid).clamp_(min=1e-6).log_()
        before = self._before
        if before is None or not _alike(before, signatures_NS, grid):
            return self._start(depth_11HW, log_depth.cpu().numpy(), signatures_NS, grid)
        values = [log_depth]
        if log_scale_11HW is not None:
            values.append(_pooled(log_scale_11HW, grid))
        matches, (log_depth_N, *log_error) = find(signatures_NS, before.signatures_NS, grid, values)
        if np.isnan(log_depth_N).any():
            return depth_11HW.clone()
        if matches.sure < CUT:
            return self._start(depth_11HW, log_depth_N, signatures_NS, grid)
        error_N = np.exp(log_error[0]).clip(LEAST_ERROR) if log_error else UNKNOWN_ERROR
        correction_N, followed = follow(before.followed, log_depth_N, matches, error_N, grid)
        self._before = _Before(signatures_NS, followed, grid)
        factor_hw = torch.from_numpy(np.exp(correction_N).reshape(grid)).to(depth_11HW.device)
        return _enlarged(factor_hw, depth_11HW).mul_(depth_11HW[0, 0])[None, None]

    def reset(self) -> None:
        """The next frame is a first one."""
        self._before = None

    def _start(
        self, depth_11HW: Tensor, log_depth_N: Floats, signatures_NS: Tensor, grid: Size
    ) -> Tensor:
        self._before = None
        if np.isfinite(log_depth_N).all():
            self._before = _Before(signatures_NS, first(log_depth_N), grid)
        return depth_11HW.clone()


def _alike(before: _Before, signatures_NS: Tensor, grid: Size) -> bool:
    """Whether a frame can be compared with the one before."""
    then_NS = before.signatures_NS
    same = then_NS.shape == signatures_NS.shape and then_NS.device == signatures_NS.device
    return same and before.grid == grid


def _pooled(map_11HW: Tensor, grid: Size) -> Tensor:
    """(N,) means over the patches: by two products, half the time of a pooling on a CPU."""
    (h, w), (height, width) = grid, map_11HW.shape[-2:]
    columns_wW = _means(w, width, map_11HW.device)
    return (_means(h, height, map_11HW.device) @ map_11HW[0, 0].float() @ columns_wW.T).flatten()


@functools.lru_cache(maxsize=32)
def _means(cells: int, size: int, device: torch.device) -> Tensor:
    """(cells, size): what each of a line of ``size`` has in the mean of each of ``cells``."""
    eye_1SS = torch.eye(size, dtype=torch.float32, device=device)[None]
    return F.adaptive_avg_pool1d(eye_1SS, cells)[0].T.contiguous()


def _enlarged(map_hw: Tensor, like_11HW: Tensor) -> Tensor:
    """As ``decoders.blocks.resize``, by two products: a sixth of its time on a CPU."""
    (h, w), (height, width) = map_hw.shape, like_11HW.shape[-2:]
    rows_Hh = _shares(h, height, like_11HW.device)
    return rows_Hh @ map_hw @ _shares(w, width, like_11HW.device).T


@functools.lru_cache(maxsize=32)
def _shares(cells: int, size: int, device: torch.device) -> Tensor:
    """(size, cells): what each of ``cells`` has in a line of ``size``."""
    eye_1CC = torch.eye(cells, dtype=torch.float32, device=device)[None]
    return F.interpolate(eye_1CC, size, mode="linear", align_corners=False)[0].T.contiguous()
