"""A linear probe as a depth predictor: the yardstick that a head has to beat.

Ridge regression of log depth on the standardised tokens of some levels, at the patch grid, resized
bilinearly in log depth.

Axes: B samples, P patches, L levels, K features of a level, H W a picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.patches import PatchReader
from clipdepth_plugin.evaluation.predictors import camera_factor, sample_pixels
from clipdepth_plugin.evaluation.ridge import RidgeSums
from clipdepth_plugin.features import Views
from clipdepth_plugin.maps.placing import at_size

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.data import Sample


class RidgePredictor:
    """A ``Predictor`` (``predictors.py``) that is linear in the tower's tokens."""

    def __init__(
        self,
        tower: Tower,
        preprocessing: Preprocessing,
        levels: Sequence[int],
        *,
        patches: int | None = 64,
        ridge: float = 1e-2,
        canonical_focal: float | None = None,
    ) -> None:
        """Starts unfitted.

        Args:
            tower: From ``choose_tower``.
            preprocessing: From a picture to the tower's input.
            levels: Levels whose tokens are read, together.
            patches: Patches of each picture to fit on, at random; None takes all.
            ridge: Penalty on standardised tokens.
            canonical_focal: Fit depths carried to this focal length, in pixels of the tower's
                input, as heads with ``HeadConfig.canonical_focal`` do; None fits them as they are.
        """
        self._preprocessing = preprocessing
        self._patch_size = tower.patch_size
        self._canonical = canonical_focal
        self._ridge = ridge
        self._reader = PatchReader(tower, preprocessing, patches, 0, levels)
        self._sums = RidgeSums(len(self._reader.tokens.levels), self._reader.features)

    def fit(
        self,
        data: Sequence[Any],
        advance: Callable[[int], object] | None = None,
        repeats: Sequence[float] | None = None,
    ) -> None:
        """Fits on map-style data sets of ``Sample``, all together.

        Args:
            data: The sets.
            repeats: How many times the pictures of each set count, as in ``DataConfig.repeat``;
                None is once.
            advance: Called with the number of pictures just read.

        Raises:
            DataError: No picture has valid depth.
        """
        for dataset, weight in zip(data, repeats or [1.0] * len(data), strict=True):
            seen = 0
            for done, x_NLK, y_N in self._reader.read(_Carried(dataset, self._factor)):
                self._sums.add(x_NLK, y_N, weight)
                if advance is not None:
                    advance(done - seen)
                seen = done
        if self._sums.count == 0:
            raise DataError("the ridge was given no picture with valid depth to fit on")
        self._fit = self._sums.fit(range(self._sums.blocks), self._ridge)

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """See ``Predictor``."""
        features = self._reader.tokens(sample_pixels(samples, self._preprocessing))
        x_LBPD = torch.stack([features.levels[k].float().cpu() for k in self._reader.tokens.levels])
        projection_DK = self._reader.projection_DK
        x_LBPK = x_LBPD if projection_DK is None else x_LBPD @ projection_DK
        log_M = self._fit(rearrange(x_LBPK, "l b p k -> l (b p) k"))
        h, w = features.grid
        log_B1hw = rearrange(log_M.float(), "(b h w) -> b 1 h w", h=h, w=w)
        views = Views(1, features.grid, self._preprocessing.size)
        predicted = []
        for log_1hw, sample in zip(log_B1hw, samples, strict=True):
            height, width = sample.image_3HW.shape[-2:]
            log_B1HW = at_size([(log_1hw[None], views)], self._patch_size, (height, width))
            predicted.append(log_B1HW[0].exp() * self._factor(sample))
        return predicted

    def _factor(self, sample: Sample) -> float:
        """True metres over the fitted ones: 1 where a camera is not known."""
        height, width = sample.image_3HW.shape[-2:]
        return camera_factor(
            sample.intrinsics, (height, width), self._preprocessing, self._canonical
        )


class _Carried(Sequence["Sample"]):
    """Samples whose depths are divided by a factor of their own."""

    def __init__(self, dataset: Any, factor: Callable[[Sample], float]) -> None:
        self._dataset = dataset
        self._factor = factor

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        sample = self._dataset[index]
        return replace(sample, depth_1HW=sample.depth_1HW / self._factor(sample))
