"""Ranks a tower's levels: how well does a linear function of their tokens give the depth?

Ridge regression of the mean log depth of each patch on its standardised tokens, each level
alone, then greedily the level that helps most beside those chosen.

Axes: N patches, L levels, K features of a level (the width D, or a projection of it), M validation
patches. Depths in metres.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from clipdepth_plugin.config import PRESETS, HeadConfig, Preset, scale_levels
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.patches import PatchReader, split_samples
from clipdepth_plugin.evaluation.ridge import RidgeSums

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How to probe.

    Attributes:
        max_images: Pictures to read of each data set, evenly spread.
        patches: Patches taken of each picture, at random; None takes all.
        ridge: Penalty on standardised tokens.
        stages: Semantic levels to propose, and one structural level less; the dual-path presets
            take 4, the compact ones any number.
    """

    max_images: int = 400
    patches: int | None = 128
    ridge: float = 1e-2
    stages: int = 4


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
        accepting: Presets that take these levels as they are.
        images: (training, validation) pictures.
        patches: (training, validation) patches.
        features: K, features of a level; less than the tower's width where projected.
        split: How validation pictures were chosen: "sequence", "tail" or "given".
    """

    constant: LevelScore
    singles: tuple[LevelScore, ...]
    steps: tuple[LevelScore, ...]
    presets: dict[str, LevelScore]
    semantic: tuple[int, ...]
    structural: tuple[int, ...]
    accepting: tuple[Preset, ...]
    images: tuple[int, int]
    patches: tuple[int, int]
    features: int
    split: str


def rank_levels(
    tower: Tower,
    preprocessing: Preprocessing,
    train: Any,
    validation: Any = None,
    *,
    options: ProbeOptions | None = None,
    advance: Callable[[int, int], object] = lambda *_: None,
) -> LayerRanking:
    """Probes all levels of a tower on a data set.

    Args:
        tower: From ``choose_tower``.
        preprocessing: From a picture to the tower's input.
        train: A data set of ``Sample``.
        validation: Another one; None splits whole sequences (or, of fewer than five, the last
            fifth of the pictures) off ``train``.
        options: How to probe.
        advance: Called with (pictures done since the last call, of how many in all).

    Raises:
        DataError: Too few pictures, or none with valid depth; fewer levels than ``stages``.
    """
    options = options or ProbeOptions()
    if options.stages > tower.depth + 1:
        raise DataError(
            f"--stages {options.stages}: the tower has {tower.depth + 1} levels, 0 to "
            f"{tower.depth}, and each stage needs one of its own; give fewer"
        )
    fitted, held, split = split_samples(train, validation, options.max_images)
    reader = PatchReader(tower, preprocessing, options.patches)
    total = len(fitted) + len(held)
    sums = RidgeSums(len(reader.levels), reader.features)
    for count, x_NLK, y_N in reader.read(fitted):
        sums.add(x_NLK, y_N)
        advance(count, total)
    pieces: list[tuple[Tensor, Tensor]] = []
    for count, x_NLK, y_N in reader.read(held):
        pieces.append((x_NLK, y_N))
        advance(count, total)
    scored = sum(len(y_N) for _, y_N in pieces)
    if min(sums.count, scored) < 2:
        raise DataError(
            f"{sums.count} training and {scored} validation patches with valid depth: too few; "
            "read more pictures"
        )
    probe = _Probe(sums, pieces, options.ridge)
    steps = probe.greedy(reader.levels, 2 * options.stages - 1)
    chosen = steps[-1].levels
    semantic = tuple(sorted(chosen[: options.stages], reverse=True))
    structural = tuple(sorted(chosen[options.stages :], reverse=True))
    singles = (probe.score((level,)) for level in reader.levels)
    return LayerRanking(
        constant=probe.score(()),
        singles=tuple(sorted(singles, key=lambda score: score.rmse_log)),
        steps=steps,
        presets={preset: probe.score_preset(preset, tower) for preset in PRESETS},
        semantic=semantic,
        structural=structural,
        accepting=accepting_presets(tower.width, semantic, structural),
        images=(len(fitted), len(held)),
        patches=(sums.count, scored),
        features=reader.features,
        split=split,
    )


def accepting_presets(
    width: int, semantic: tuple[int, ...], structural: tuple[int, ...]
) -> tuple[Preset, ...]:
    """The presets that take these levels, and no structural pathway where it has none."""
    given: dict[str, Any] = {"semantic_levels": semantic}
    given |= {"structural_levels": structural} if structural else {"structural": False}
    accepting: list[Preset] = []
    for preset in PRESETS:
        with contextlib.suppress(ValidationError):
            HeadConfig(width=width, preset=preset, **given)
            accepting.append(preset)
    return tuple(accepting)


class _Probe:
    """Fits subsets of levels and scores them on the validation patches."""

    def __init__(
        self, sums: RidgeSums, validation: Sequence[tuple[Tensor, Tensor]], ridge: float
    ) -> None:
        self._sums, self._ridge = sums, ridge
        self._x_LMK = torch.cat([x_NLK for x_NLK, _ in validation]).transpose(0, 1).contiguous()
        self._y_M = torch.cat([y_N for _, y_N in validation]).double()

    def score(self, levels: tuple[int, ...]) -> LevelScore:
        """Of no level: the constant's."""
        weights_LK, bias = self._sums.fit(levels, self._ridge)
        error_M = bias - self._y_M
        for level, weights_K in zip(levels, weights_LK, strict=True):
            error_M += self._x_LMK[level] @ weights_K.to(self._x_LMK.dtype)
        return LevelScore(
            levels,
            rmse_log=float(error_M.square().mean().sqrt()),
            abs_rel=float((error_M.exp() - 1).abs().mean()),
            delta1=float((error_M.abs().exp() < 1.25).double().mean()),
        )

    def score_preset(self, preset: Preset, tower: Tower) -> LevelScore:
        levels = HeadConfig(width=tower.width, preset=preset).levels
        return self.score(tuple(sorted(set(scale_levels(levels, tower.depth)))))

    def greedy(self, levels: Sequence[int], count: int) -> tuple[LevelScore, ...]:
        """One level more in each step, the one that helps most."""
        steps: list[LevelScore] = []
        chosen: tuple[int, ...] = ()
        while len(steps) < min(count, len(levels)):
            tried = (self.score((*chosen, one)) for one in levels if one not in chosen)
            steps.append(min(tried, key=lambda score: score.rmse_log))
            chosen = steps[-1].levels
        return tuple(steps)
