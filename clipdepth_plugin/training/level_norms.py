"""Data-dependent initialisation of a new head's level norms.

Scale and shift are set so that each channel of the tower's tokens has mean 0 and deviation 1. A
layer norm alone gives each token deviation 1, but most channels hardly vary between tokens, and a
few are far from 0 everywhere. The statistics are measured once on the first pictures, as in Weight
Normalization (arXiv 1602.07868, section 3); scale and shift are trained from there.

Axes: B views, N patch tokens, D tower width; M = 2 D + 1: sums of D channels and of their squares,
and the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.training.batches import FeatureSource

_LEAST_DEVIATION = 1e-3
"""Of a channel; limits the scale of one that does not vary."""


def init_level_norms(
    head: DepthHead, source: FeatureSource, batches: int, accelerator: Accelerator
) -> None:
    """Initialises scale and shift of a head's level norms; does nothing for a head without them.

    Call it in every process; the statistics are pooled over all of them.
    """
    norms = head.decoder.level_norms()
    if not norms:
        return
    sums = {level: _nothing(same[0]) for level, same in norms.items()}
    for batch in islice(source.batches(0), batches):
        for level in sums:
            for features, _ in batch.runs:
                sums[level] += _sums(features.levels[level])
    for level, same in norms.items():
        total_M = sums[level]
        if accelerator.num_processes > 1:
            total_M = accelerator.reduce(total_M.to(accelerator.device), reduction="sum").cpu()
        _set(same, total_M)


def _nothing(norm: nn.LayerNorm) -> Tensor:
    return torch.zeros(2 * norm.normalized_shape[0] + 1, dtype=torch.float64)


def _sums(tokens_BND: Tensor) -> Tensor:
    """(M,) of one batch's tokens, each normalised; float64 on the CPU."""
    normed_BND = F.layer_norm(tokens_BND.float(), tokens_BND.shape[-1:])
    count = math.prod(normed_BND.shape[:-1])
    sums = (normed_BND.sum((0, 1)), normed_BND.square().sum((0, 1)), normed_BND.new_tensor([count]))
    return torch.cat(sums).cpu().double()


def _set(norms: Iterable[nn.LayerNorm], total_M: Tensor) -> None:
    """Sets scale and shift so that each channel has mean 0 and deviation 1."""
    count = float(total_M[-1])
    if not count:
        return
    mean_D, square_D = (total_M[:-1] / count).chunk(2)
    deviation_D = (square_D - mean_D.square()).clamp_min(_LEAST_DEVIATION**2).sqrt()
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(1 / deviation_D)
            norm.bias.copy_(-mean_D / deviation_D)
