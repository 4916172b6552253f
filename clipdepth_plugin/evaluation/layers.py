"""Ranks a tower's levels: how well does a linear function of their tokens give the depth?

Ridge regression of the mean log depth of each patch on its standardised tokens, each level
alone, then greedily the level that helps most beside those chosen.

Axes: N patches, L levels, K features of a level (the width D, or a projection of it), M validation
patches. Depths in metres.
"""

from __future__ import annotations

import contextlib
import math
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
        seed: Of the patches and of the projection.
    """

    max_images: int = 400
    patches: int | None = 128
    ridge: float = 1e-2
    stages: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LevelScore:
    """How well some levels do on the validation patches.

    Attributes:
        levels: The levels.
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
    _check_stages(options.stages, tower.depth + 1)
    fitted, held, split = split_samples(train, validation, options.max_images)
    reader = PatchReader(tower, preprocessing, options.patches, options.seed)
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
    probe = _Probe(sums, pieces, reader.levels, options.ridge)
    steps, chosen = probe.greedy(2 * options.stages - 1)
    semantic = tuple(sorted(chosen[: options.stages], reverse=True))
    structural = tuple(sorted(chosen[options.stages :], reverse=True))
    return LayerRanking(
        constant=probe.constant(),
        singles=probe.singles(),
        steps=steps,
        presets=probe.presets(),
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


def _check_stages(stages: int, levels: int) -> None:
    if stages > levels:
        raise DataError(
            f"--stages {stages}: the tower has {levels} levels, 0 to {levels - 1}, and each stage "
            f"needs one of its own; give {levels} at the most"
        )


class _Probe:
    """Fits subsets of levels and scores them."""

    def __init__(
        self,
        sums: RidgeSums,
        validation: Sequence[tuple[Tensor, Tensor]],
        levels: Sequence[int],
        ridge: float,
    ) -> None:
        self._sums = sums
        self._x_LMK = torch.cat([x_NLK for x_NLK, _ in validation]).transpose(0, 1).contiguous()
        self._y_M = torch.cat([y_N for _, y_N in validation]).double()
        self._levels, self._ridge = tuple(levels), ridge

    def score(self, levels: Sequence[int]) -> LevelScore:
        fit = self._sums.fit([self._levels.index(level) for level in levels], self._ridge)
        return self._of(tuple(sorted(levels)), fit(self._x_LMK))

    def constant(self) -> LevelScore:
        return self._of((), torch.full_like(self._y_M, self._sums.mean_y))

    def singles(self) -> tuple[LevelScore, ...]:
        scores = (self.score([level]) for level in self._levels)
        return tuple(sorted(scores, key=lambda score: score.rmse_log))

    def greedy(self, count: int) -> tuple[tuple[LevelScore, ...], list[int]]:
        """The scores step by step, and the levels in the order in which they were taken."""
        steps: list[LevelScore] = []
        chosen: list[int] = []
        while len(steps) < min(count, len(self._levels)):
            rest = [level for level in self._levels if level not in chosen]
            tried = {level: self.score([*chosen, level]) for level in rest}
            best = min(rest, key=lambda level: tried[level].rmse_log)
            chosen.append(best)
            steps.append(tried[best])
        return tuple(steps), chosen

    def presets(self) -> dict[str, LevelScore]:
        depth = self._levels[-1]
        found = {}
        for preset in PRESETS:
            levels = HeadConfig(width=self._sums.width, preset=preset).levels
            found[str(preset)] = self.score(sorted(set(scale_levels(levels, depth))))
        return found

    def _of(self, levels: tuple[int, ...], log_M: Tensor) -> LevelScore:
        error_M = log_M - self._y_M
        ratio_M = error_M.abs().exp()
        return LevelScore(
            levels,
            rmse_log=math.sqrt(float(error_M.square().mean())),
            abs_rel=float((error_M.exp() - 1).abs().mean()),
            delta1=float((ratio_M < 1.25).double().mean()),
        )
