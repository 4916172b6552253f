"""Convex upsampling (RAFT, arXiv 2003.12039, section 3.3): fine positions, mixed from 3 x 3 coarse.

Axes: B views, H W the coarse map's size, R = factor^2 the fine positions within a coarse one, K the
9 neighbours, S = K * R.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONVEX_FACTOR = 4


def convex_weights(logits_BSHW: Tensor) -> list[Tensor]:
    """(B, S, H, W) logits -> the (B, R, H, W) weight of each neighbour, to be divided by their sum.

    Neighbour after neighbour, in float32 or wider: a softmax over an axis in the middle takes four
    times as long on a CPU, in PyTorch as in onnxruntime.
    """
    logits = logits_BSHW.unflatten(1, (9, -1)).unbind(1)
    highest = functools.reduce(torch.maximum, logits).detach()  # it falls out of the quotient
    highest = highest.to(torch.promote_types(highest.dtype, torch.float32))
    return [(one - highest).exp() for one in logits]


def convex_upsample(x_B1HW: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(B, 1, H, W) -> (B, 1, factor * H, factor * W), mixed by ``convex_weights``."""
    height, width = x_B1HW.shape[-2:]
    padded = F.pad(x_B1HW, (1, 1, 1, 1), mode="replicate")
    near = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    mixed = functools.reduce(torch.add, (w * x for w, x in zip(weights, near, strict=True)))
    mixed_BRHW = mixed / functools.reduce(torch.add, weights)
    return F.pixel_shuffle(mixed_BRHW, round(weights[0].shape[1] ** 0.5))


def spline_logits(factor: int) -> Tensor:
    """(9 * factor^2,) logits of ``convex_weights`` that mix as quadratic B-splines do.

    They keep planes planar: without more to tell, no coarse position shows as a block.
    """
    u_R = (torch.arange(factor) + 0.5) / factor - 0.5
    weight_KR = torch.stack([(0.5 - u_R) ** 2 / 2, 0.75 - u_R**2, (0.5 + u_R) ** 2 / 2])
    weight_S = torch.einsum("iy,jx->ijyx", weight_KR, weight_KR).flatten()
    return weight_S.log()
