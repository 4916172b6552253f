"""The factor on a head's predicted error scale that calibrates its confidence.

It is fitted in validation, so on places that were left out of training, where the scale that was
learnt is too small (as temperature scaling: Guo et al., arXiv 1706.04599, section 4.2).

Axes: B views, K pixels, S sets, E bins of the log of the scale b, T candidates, C bins of
confidence.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from clipdepth_plugin.decoders.readout import CONFIDENT_FACTOR, confidence_of
from clipdepth_plugin.training.terms.term import wide

E = 900
_LOW, _HIGH = -10.0, 8.0
"""Ends of the bins of log b."""

_MIDDLE_E = _LOW + (torch.arange(E, dtype=torch.float64) + 0.5) * ((_HIGH - _LOW) / E)

_FACTORS = (-3.0, 4.0, 351)
"""Candidates: the logarithm of the first and last factor, and how many."""

_CONFIDENCE_BINS = 15
_SMALLEST = 1e-3


def scale_shares(
    log_scale_B1HW: Tensor, pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor
) -> Tensor:
    """How much of each view has which predicted scale, and is right: all that the fit needs.

    Returns:
        (B, 2, E): shares of a view's valid pixels, by whether the prediction is within a factor of
        1.25 of the truth (0: not, 1: it is) and by the bin of log b. Zeros without valid pixels.
    """
    views, valid_BK = len(pred_B1HW), valid_B1HW.flatten(1)
    depth_BK = torch.where(valid_BK, depth_B1HW.flatten(1).float(), 1.0)
    error_BK = (pred_B1HW.flatten(1).float().clamp_min(_SMALLEST).log() - depth_BK.log()).abs()
    right_BK = (error_BK < math.log(CONFIDENT_FACTOR)).long()
    place_BK = (log_scale_B1HW.flatten(1).float() - _LOW) * (E / (_HIGH - _LOW))
    bin_BK = place_BK.nan_to_num().clamp(0, E - 1).long()
    view_B1 = torch.arange(views, device=bin_BK.device)[:, None]
    index_BK = (view_B1 * 2 + right_BK) * E + bin_BK
    # Whole numbers, whose sum is the same in any order.
    counts_B2E = torch.bincount(index_BK[valid_BK], minlength=views * 2 * E).view(views, 2, E)
    return wide(counts_B2E) / valid_BK.sum(dim=1).clamp_min(1)[:, None, None]


def calibration_errors(shares_S2E: Tensor, factor: float) -> Tensor:
    """(S,): expected calibration error of each set (15 even bins) under a factor on b.

    ``shares_S2E`` are ``scale_shares``, the mean over a set's views.
    """
    confidence_E = confidence_of(_MIDDLE_E + math.log(factor))
    bin_E = (confidence_E * _CONFIDENCE_BINS).long().clamp_max(_CONFIDENCE_BINS - 1)
    wrong_SE, right_SE = shares_S2E.double().cpu().unbind(dim=1)
    gap_SE = (wrong_SE + right_SE) * confidence_E - right_SE
    gap_SC = gap_SE.new_zeros(len(gap_SE), _CONFIDENCE_BINS)
    return gap_SC.index_add_(1, bin_E, gap_SE).abs().sum(dim=1)


def best_factor(shares_S2E: Tensor) -> float:
    """The factor on b under which right and wrong pixels are likeliest, the sets weighing the same.

    The calibration error would be no measure here: its minimum for several sets is that of most of
    them, however wrong the confidence in the others.
    """
    wrong_E, right_E = shares_S2E.double().cpu().mean(dim=0)
    log_factor_T, miss_TE, hit_TE = _log_chances()
    likelihood_T = miss_TE @ wrong_E + hit_TE @ right_E
    return float(log_factor_T[likelihood_T.argmax()].exp())


@functools.cache
def _log_chances() -> tuple[Tensor, Tensor, Tensor]:
    """Logs of the candidates (T,), and of the chances (T, E) to be wrong and to be right."""
    log_factor_T = torch.linspace(*_FACTORS, dtype=torch.float64)
    # log(1 - confidence) = -log(1.25) / b.
    miss_TE = -math.log(CONFIDENT_FACTOR) * torch.exp(-_MIDDLE_E - log_factor_T[:, None])
    return log_factor_T, miss_TE, torch.log(-torch.expm1(miss_TE))
