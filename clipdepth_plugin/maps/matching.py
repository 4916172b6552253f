"""Patches looked up in the frame before, by the cosine of their tokens.

What is N x N is computed where the tokens are; what is left, some numbers a patch, comes to the
host in one transfer and is NumPy's: PyTorch's calls on so few numbers cost more than the numbers.

Axes: N = h * w patch tokens (row-major), D width, S channels that are compared, K the patch and its
eight neighbours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.arguments import Size

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

LIKENESS = (-0.5, 0.0)
"""Where a match begins to count and where it counts fully: 0, as similar as neighbouring patches
are on average; 1, equal."""
_SELF = 4  # of K
_CHANNELS = 128  # the first ones are compared, of any tower: results/streams.md


def signatures(tokens: Tensor) -> Tensor:
    """What is compared of tokens (..., D): (..., S) float32 of length 1."""
    return F.normalize(tokens.detach()[..., :_CHANNELS].contiguous().float(), dim=-1)


@dataclass(frozen=True)
class Matches:
    """Where each patch was in the frame before.

    Attributes:
        near_KN: Its most similar patch and those around it.
        share_KN: How much of it each of them is; the sum is 1.
        weight_N: How much the match counts, 0 to 1: it is mutual (the match's own most similar
            patch is this one or a neighbour), and a neighbour of this one has moved alike.
        sure: The share of patches that count of which two neighbours have moved alike.
    """

    near_KN: Indices
    share_KN: Floats
    weight_N: Floats
    sure: float


def find(
    now_NS: Tensor, then_NS: Tensor, grid: Size, values: list[Tensor]
) -> tuple[Matches, list[Floats]]:
    """The matches of two frames' ``signatures``; ``values`` (N,) come to the host with them."""
    beside_KN = _on(grid, now_NS.device)
    likeness_NN = now_NS @ then_NS.T
    match_N = likeness_NN.max(dim=1).indices  # argmax takes twice as long on a CPU
    back_N = likeness_NN[beside_KN, match_N].amax(dim=0)
    mutual_N = back_N >= likeness_NN.amax(dim=0)[match_N]
    now_hwS = now_NS.view(*grid, -1)
    beside = torch.linalg.vecdot(now_hwS[:, 1:], now_hwS[:, :-1])
    # Of a grid of one column there are none beside each other.
    usual = beside.mean() if beside.numel() else beside.new_zeros(())
    above_KN = (likeness_NN[beside_KN[_SELF], beside_KN[:, match_N]] - usual) / (1 - usual).clamp(
        min=1e-6
    )
    numbers = torch.cat([torch.stack([match_N, mutual_N, *values]), above_KN]).cpu().numpy()
    match, (mutual, *found), above = numbers[0].astype(np.intp), numbers[1:-9], numbers[-9:]
    # By the inverse of how unlike they are: between patches where the picture lies between them,
    # one alone where it is the same, so that a still picture's depth is not blurred.
    unlike_KN = (1 - above).clip(1e-5)
    share_KN = (unlike_KN[_SELF] / unlike_KN) ** 3
    share_KN /= share_KN.sum(axis=0)
    low, high = LIKENESS
    alike_N = _moved_alike(match, grid)
    weight_N = ((above[_SELF] - low) / (high - low)).clip(0, 1) * mutual * (alike_N >= 1)
    sure = np.count_nonzero((weight_N > 0) & (alike_N >= 2)) / len(match)
    return Matches(around(grid)[:, match], share_KN, weight_N, sure), found


def _moved_alike(match_N: Indices, grid: Size) -> NDArray[np.intp]:
    """How many of its four neighbours have moved by no more than a patch otherwise."""
    moved_2hw = (np.stack(np.divmod(match_N, grid[1])) - _places(grid)).reshape(2, *grid)
    alike_hw = np.zeros(grid, dtype=np.intp)
    down_hw = (np.abs(np.diff(moved_2hw, axis=1)) <= 1).all(axis=0)
    right_hw = (np.abs(np.diff(moved_2hw, axis=2)) <= 1).all(axis=0)
    alike_hw[1:] += down_hw
    alike_hw[:-1] += down_hw
    alike_hw[:, 1:] += right_hw
    alike_hw[:, :-1] += right_hw
    return alike_hw.ravel()


@functools.lru_cache(maxsize=32)
def _places(grid: Size) -> Indices:
    """(2, N) rows and columns of patches."""
    return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]))


@functools.lru_cache(maxsize=32)
def around(grid: Size) -> Indices:
    """(K, N): the patch and its neighbours, the nearest there is at the border."""
    rows_N, columns_N = _places(grid)
    steps = (-1, 0, 1)
    return np.stack(
        [
            (rows_N + down).clip(0, grid[0] - 1) * grid[1]
            + (columns_N + right).clip(0, grid[1] - 1)
            for down in steps
            for right in steps
        ]
    )


@functools.lru_cache(maxsize=32)
def _on(grid: Size, device: torch.device) -> Tensor:
    return torch.from_numpy(around(grid)).to(device)
