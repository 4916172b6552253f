"""Which pixels of a label count, and how they are stored.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.labelling.source import SourceCard

SATURATED = 0.99
"""Share of a source's farthest depth from which on it says no more than "far"."""

DISAGREEMENT = 0.1
"""Of a picture and its mirror image; pixels above are left out."""

UNBOUNDED_METRES = 100.0
"""Farthest depth that is kept of a source without a bound of its own."""

DEEPEST = 65535

Map = NDArray[np.float32]
_SPREAD, _SPREAD_PIXELS = (5.0, 95.0), 1 << 15


@dataclass(frozen=True, slots=True)
class Stored:
    """A label as it is written.

    Attributes:
        depth_HW: uint16; 0 = not known.
        agreement_HW: uint8; 255 = exactly, 1 = at the limit, 0 = left out. None: not compared.
    """

    depth_HW: NDArray[np.uint16]
    agreement_HW: NDArray[np.uint8] | None


def farthest(card: SourceCard, max_depth: float | None) -> float:
    """The farthest depth in metres that is kept of a metric source."""
    bounds = [max_depth, None if card.max_depth is None else SATURATED * card.max_depth]
    return min((bound for bound in bounds if bound is not None), default=UNBOUNDED_METRES)


def depth_scale(farthest_metres: float) -> float:
    """The stored value of a metre: one digit and zeros, so that the farthest depth is in 16 bits.

    The stored steps are then from a 32,000th to a 65,000th of the farthest depth.
    """
    most = DEEPEST / farthest_metres
    power = 10.0 ** np.floor(np.log10(most))
    return float(np.floor(most / power) * power)


def stored_label(
    units: Units,
    depth_HW: Map,
    mirrored_HW: Map | None,
    *,
    keep_HW: NDArray[np.bool_] | None,
    farthest_metres: float,
) -> Stored:
    """What is written of a label.

    Args:
        units: Of the depths.
        depth_HW: The label; NaN = not known.
        mirrored_HW: The label of the mirrored picture, mirrored back; None: not made.
        keep_HW: The user's mask; None: all.
        farthest_metres: As ``farthest`` gives it; unused for relative depth.
    """
    valid_HW = np.isfinite(depth_HW)
    if units == "metres":
        with np.errstate(invalid="ignore"):
            valid_HW &= (depth_HW > 0) & (depth_HW < farthest_metres)
    else:
        valid_HW &= depth_HW != 0  # infinitely far, where a source ends its range there
    if keep_HW is not None:
        valid_HW &= keep_HW
    agreement_HW = None
    if mirrored_HW is not None:
        apart_HW = _apart(units, depth_HW, mirrored_HW, valid_HW)
        valid_HW &= apart_HW <= DISAGREEMENT  # False of NaN
        share_HW = 1 - np.where(valid_HW, apart_HW, 0) / DISAGREEMENT
        agreement_HW = np.where(valid_HW, np.rint(1 + 254 * share_HW), 0).astype(np.uint8)
    store = _stored_metres if units == "metres" else _stored_inverse
    return Stored(store(depth_HW, valid_HW, farthest_metres), agreement_HW)


def _stored_metres(depth_HW: Map, valid_HW: NDArray[np.bool_], far: float) -> NDArray[np.uint16]:
    scaled_HW = np.rint(np.where(valid_HW, depth_HW, 0).astype(np.float64) * depth_scale(far))
    return np.where(valid_HW, scaled_HW.clip(1, DEEPEST), 0).astype(np.uint16)


def _stored_inverse(depth_HW: Map, valid_HW: NDArray[np.bool_], _: float) -> NDArray[np.uint16]:
    values = depth_HW[valid_HW].astype(np.float64)
    if not values.size:
        return np.zeros(depth_HW.shape, np.uint16)
    low, span = values.min(), np.ptp(values)
    stored_HW = np.zeros(depth_HW.shape, np.uint16)
    stored_HW[valid_HW] = np.rint(1 + (DEEPEST - 1) * (values - low) / (span or 1.0))
    return stored_HW


def _apart(
    units: Units, depth_HW: Map, mirrored_HW: Map, valid_HW: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How far the two are apart: metres as a share of the nearer, inverse depth of the spread.

    Inverse depth of either picture has a scale and shift of its own: the mirrored one is fitted.
    """
    a_HW, b_HW = depth_HW.astype(np.float64), mirrored_HW.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if units == "metres":
            apart_HW = np.maximum(a_HW / b_HW, b_HW / a_HW) - 1
            return np.where(b_HW > 0, apart_HW, np.nan)
        both_HW = valid_HW & np.isfinite(b_HW)
        a, b = a_HW[both_HW], b_HW[both_HW]
        if not a.size:
            return np.full(a_HW.shape, np.nan)
        variance = np.var(b)
        scale = np.mean((a - a.mean()) * (b - b.mean())) / variance if variance > 0 else 0.0
        fitted_HW = scale * (b_HW - b.mean()) + a.mean()
        low, high = np.percentile(a[:: 1 + a.size // _SPREAD_PIXELS], _SPREAD)
        difference_HW = np.abs(a_HW - fitted_HW)
        return difference_HW / (high - low) if high > low else np.where(difference_HW, np.inf, 0.0)
