"""The factor on a head's predicted error scale that calibrates its confidence.

It is fitted in validation, so on places that were left out of training, where the scale that was
learnt is too small (temperature scaling: Guo et al., arXiv 1706.04599; here of a Laplace scale).

Axes: B views, K pixels, S sets, E bins of the log of the scale b, T candidates, C bins of
confidence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipdepth_plugin.decoders.readout import CONFIDENT_FACTOR, confidence_of
from clipdepth_plugin.training.terms.term import wide

E = 900
_LOW, _HIGH = -10.0, 8.0
"""Ends of the bins of log b."""

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


def calibration_errors(shares_S2E: Tensor, log_factors_T: Tensor) -> Tensor:
    """(S, T): expected calibration error of each set (15 even bins) under each factor.

    ``shares_S2E`` are ``scale_shares``, the mean over a set's views.
    """
    middle_E = _LOW + (torch.arange(E, dtype=torch.float64) + 0.5) * ((_HIGH - _LOW) / E)
    confidence_TE = confidence_of(middle_E + log_factors_T.double()[:, None])
    bin_TE = (confidence_TE * _CONFIDENCE_BINS).long().clamp_max(_CONFIDENCE_BINS - 1)
    errors = []
    for wrong_E, right_E in shares_S2E.double().cpu():
        gap_TE = (wrong_E + right_E) * confidence_TE - right_E
        gap_TC = gap_TE.new_zeros(len(gap_TE), _CONFIDENCE_BINS).scatter_add_(1, bin_TE, gap_TE)
        errors.append(gap_TC.abs().sum(dim=1))
    return torch.stack(errors)


def best_factor(shares_S2E: Tensor) -> float:
    """The factor on b under which the calibration error, mean over the sets, is least."""
    log_factors_T = torch.linspace(*_FACTORS, dtype=torch.float64)
    error_T = calibration_errors(shares_S2E, log_factors_T).mean(dim=0)
    return float(log_factors_T[error_T.argmin()].exp())
