"""Ranks a tower's levels: how well does a linear function of their tokens give the depth?

Ridge regression of the mean log depth of each patch on its standardised tokens, each level
alone, then greedily the level that helps most beside those chosen.

Axes: N patches, L levels, K features of a level (the width D, or a projection of it), M validation
patches. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from clipdepth_plugin.config import PRESETS, HeadConfig, scale_levels
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.patches import PatchReader, split_samples
from clipdepth_plugin.evaluation.ridge import RidgeSums

if TYPE_CHECKING:
    from clipdepth_plugin.data import Sample

Advance = Callable[[int, int], object]
"""Called with (pictures done since the last call, of how many in all)."""


@dataclass(frozen=True, slots=True)
class LevelScore:
    """How well some levels do on the validation patches.

    Attributes:
        levels: The levels, in the order in which they were chosen.
        rmse_log: Root mean squared error of log depth; what is ranked by.
        abs_rel: Mean |exp(prediction) - depth| / depth of the patches.
        delta1: Share of patches within a factor of 1.25.
    """

    levels: tuple[int, ...]
    rmse_log: float
    abs_rel: float
    delta1: float


@dataclass(frozen=True, slots=True)
class LayerRanking:
    """What the probe found.

    Attributes:
        constant: The training patches' mean log depth alone.
        singles: Each level alone, best first.
        steps: Greedy selection, one level more in each.
        presets: Preset name -> its levels together, scaled to the tower.
        semantic: Proposed semantic levels, deepest first: the first chosen.
        structural: Proposed structural levels, deepest first: those chosen after them. Empty:
            the head needs ``structural=False``.
        images: (training, validation) pictures.
        patches: (training, validation) patches.
        features: K.
        split: How validation pictures were chosen, see ``split_samples``.
    """

    constant: LevelScore
    singles: tuple[LevelScore, ...]
    steps: tuple[LevelScore, ...]
    presets: dict[str, LevelScore]
    semantic: tuple[int, ...]
    structural: tuple[int, ...]
    images: tuple[int, int]
    patches: tuple[int, int]
    features: int
    split: str


def rank_levels(
    reader: PatchReader,
    train: Any,
    validation: Any = None,
    *,
    max_images: int = 400,
    ridge: float = 1e-2,
    stages: int = 4,
    advance: Advance = lambda *_: None,
) -> LayerRanking:
    """Probes all levels of a tower on a data set.

    Args:
        reader: Of the tower's tokens.
        train: A data set of ``Sample``.
        validation: Another one; None holds out a part of ``train``.
        max_images: Pictures to read of each data set, evenly spread.
        ridge: Penalty on standardised tokens.
        stages: Semantic levels to propose, and one structural level less; the dual-path presets
            take 4, the compact ones any number.
        advance: Reports progress.

    Raises:
        DataError: Too few pictures, or none with valid depth; fewer levels than ``stages``.
    """
    levels, tower = reader.levels, reader.tower
    if stages > len(levels):
        raise DataError(
            f"--stages {stages}: the tower has {len(levels)} levels, 0 to {levels[-1]}, and each "
            f"stage needs one of its own; give {len(levels)} at the most"
        )
    fitted, held, split = split_samples(train, validation, max_images)
    sums, x_LMK, y_M = _read(reader, fitted, held, advance)

    def score(chosen: Sequence[int]) -> LevelScore:
        return _score(chosen, sums.fit(chosen, ridge), x_LMK, y_M)

    steps: list[LevelScore] = []
    chosen: tuple[int, ...] = ()
    while len(steps) < min(2 * stages - 1, len(levels)):
        tried = (score((*chosen, one)) for one in levels if one not in chosen)
        steps.append(min(tried, key=lambda score: score.rmse_log))
        chosen = steps[-1].levels
    presets: dict[str, LevelScore] = {}
    for preset in PRESETS:
        its = HeadConfig(width=tower.width, preset=preset).levels
        presets[preset] = score(sorted(set(scale_levels(its, tower.depth))))
    return LayerRanking(
        constant=score(()),
        singles=tuple(sorted((score((one,)) for one in levels), key=lambda one: one.rmse_log)),
        steps=tuple(steps),
        presets=presets,
        semantic=tuple(sorted(chosen[:stages], reverse=True)),
        structural=tuple(sorted(chosen[stages:], reverse=True)),
        images=(len(fitted), len(held)),
        patches=(sums.count, len(y_M)),
        features=reader.features,
        split=split,
    )


def _read(
    reader: PatchReader, fitted: Subset[Sample], held: Subset[Sample], advance: Advance
) -> tuple[RidgeSums, Tensor, Tensor]:
    """The sums to fit, and the validation patches' tokens (L, M, K) and log depths (M,)."""
    total = len(fitted) + len(held)
    sums = RidgeSums(len(reader.levels), reader.features)
    for count, x_NLK, y_N in reader.read(fitted):
        sums.add(x_NLK, y_N)
        advance(count, total)
    pieces: list[tuple[Tensor, Tensor]] = []
    for count, x_NLK, y_N in reader.read(held):
        pieces.append((x_NLK, y_N))
        advance(count, total)
    x_MLK, y_M = (torch.cat(column) for column in zip(*pieces, strict=True))
    if min(sums.count, len(y_M)) < 2:
        raise DataError(
            f"{sums.count} training and {len(y_M)} validation patches with valid depth: too few; "
            "read more pictures"
        )
    return sums, x_MLK.transpose(0, 1).contiguous(), y_M


def _score(
    levels: Sequence[int], fit: tuple[Tensor, float], x_LMK: Tensor, y_M: Tensor
) -> LevelScore:
    weights_LK, bias = fit
    error_M = bias - y_M
    for level, weights_K in zip(levels, weights_LK, strict=True):
        error_M += x_LMK[level] @ weights_K.to(x_LMK.dtype)
    return LevelScore(
        tuple(levels),
        rmse_log=float(error_M.square().mean().sqrt()),
        abs_rel=float((error_M.exp() - 1).abs().mean()),
        delta1=float((error_M.abs().exp() < 1.25).double().mean()),
    )
