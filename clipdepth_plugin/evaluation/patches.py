"""Patches of pictures with their tokens at all levels and their depth, for the ridge probe.

Axes: N patches, P all patches of a picture, L levels, D tower width, K features of a level (D, or a
projection of it), (h, w) patch grid, H W a picture's own size. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.pixels import normalised, part, to_pixels
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.data.sample import check_metres
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.maps.geometry import ViewGeometry

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.data import Sample
    from clipdepth_plugin.features import Run

MAX_FEATURES = 6000
"""Features of all levels together; wider towers are projected at random to fit."""

VALIDATION_EVERY = 5
"""One sequence (or picture) in so many is held out."""

_BATCH = 8


def split_samples(
    train: Any, validation: Any | None, max_images: int
) -> tuple[Subset[Sample], Subset[Sample], str]:
    """The pictures to fit on, those to score on, and how they were chosen.

    At most ``max_images`` of each data set; of a stream the first, of others evenly spread ones.
    "given": ``validation`` is a data set. "sequence": every fifth sequence (a name up to its last
    "/") of ``train`` is held out. "tail": there are fewer than five, and the last fifth of the
    pictures is.

    Raises:
        DataError: Fewer than two pictures to split.
    """
    picked, names = _picked(train, max_images)
    if validation is not None:
        return picked, _picked(validation, max_images)[0], "given"
    if len(picked) < 2:
        raise DataError(f"{len(picked)} pictures: too few to fit on some and score on others")
    sequences = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    if len(sequences) >= VALIDATION_EVERY:
        held_out = sequences[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
        held = [i for i, name in enumerate(names) if name.rpartition("/")[0] in held_out]
        split = "sequence"
    else:
        held = list(range(len(picked) - max(1, len(picked) // VALIDATION_EVERY), len(picked)))
        split = "tail"
    fitted = [i for i in range(len(picked)) if i not in held]
    return Subset(picked, fitted), Subset(picked, held), split


def _picked(dataset: Any, max_images: int) -> tuple[Subset[Sample], list[str]]:
    """Evenly spread samples (of a stream its first ones), and their names, read where known."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        dataset = list(islice(dataset, max_images))
    count = min(len(dataset), max_images)
    indices = [i * len(dataset) // count for i in range(count)]
    name = getattr(dataset, "name", lambda index: dataset[index].name)
    return Subset(dataset, indices), [name(index) for index in indices]


class PatchReader:
    """Tokens and log depths of the patches of pictures.

    Attributes:
        tower: The tower.
        levels: All its levels, 0 to its depth.
        features: K, features of a level; less than the tower's width where projected.
    """

    def __init__(
        self, tower: Tower, preprocessing: Preprocessing, patches: int | None = 128
    ) -> None:
        """Taps the tower only while it runs.

        Args:
            tower: From ``choose_tower``.
            preprocessing: From a picture to the tower's input: it is squashed to ``size``, where
                views have sizes of their own to that of the first view that the host makes of it.
            patches: Taken of each picture, at random; None takes all.
        """
        self.levels = tuple(range(tower.depth + 1))
        self.features = min(tower.width, MAX_FEATURES // len(self.levels))
        recorder = PassRecorder(Wanted(tower, self.levels), TowerPass)
        taps = Taps(tower.module, tower, recorder, owner=self)
        self._runner = TowerRunner(tower, taps, recorder)
        self._preprocessing = preprocessing.whole() if preprocessing.fixed_size else preprocessing
        self.tower = tower
        self._patches = patches
        self._random = torch.Generator().manual_seed(0)
        self._projection_DK: Tensor | None = None
        if self.features < tower.width:
            shape = (tower.width, self.features)
            self._projection_DK = torch.linalg.qr(torch.randn(shape, generator=self._random)).Q

    def tokens(self, samples: Sequence[Sample]) -> list[Run]:
        """All levels, each (B, P, D), of samples' pictures, without a graph."""
        known = self._preprocessing
        pixels: Sequence[Tensor]
        if known.fixed_size:
            pixels = [*to_pixels([sample.picture for sample in samples], known)]
        else:
            pixels = [self._squashed(sample) for sample in samples]
        return self._runner.runs(pixels)

    def _squashed(self, sample: Sample) -> Tensor:
        known, (height, width) = self._preprocessing, sample.image_3HW.shape[1:]
        shown = known.views((height, width)).views[0].view_size
        whole = ViewGeometry.squashed((height, width), shown)
        return normalised(part(sample.picture, whole, known), known)

    def read(
        self, samples: Subset[Sample] | Sequence[Sample]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (pictures of a batch, their tokens (N, L, K) float32, mean log depths (N,))."""
        for start in range(0, len(samples), _BATCH):
            batch = [samples[i] for i in range(start, min(start + _BATCH, len(samples)))]
            for one in batch:
                check_metres(one)
            rest = iter(batch)
            pieces = [
                self._patches_of(run, i, next(rest))
                for run in self.tokens(batch)
                for i in range(run.features.batch)
            ]
            x_NLK, y_N = (torch.cat(column) for column in zip(*pieces, strict=True))
            yield len(batch), x_NLK, y_N

    def _patches_of(self, run: Run, index: int, sample: Sample) -> tuple[Tensor, Tensor]:
        features = run.features
        log_P = patch_log_depth(
            sample.depth_1HW[0],
            features.grid,
            patch_size=self.tower.patch_size,
            pixel_size=run.pixel_size,
        )
        chosen_N = torch.isfinite(log_P).nonzero()[:, 0]
        if self._patches is not None and len(chosen_N) > self._patches:
            order = torch.randperm(len(chosen_N), generator=self._random)
            chosen_N = chosen_N[order[: self._patches]]
        tokens_PD = (features.levels[level][index].cpu() for level in self.levels)
        x_NLD = torch.stack([one_PD[chosen_N].float() for one_PD in tokens_PD], dim=1)
        projection_DK = self._projection_DK
        x_NLK = x_NLD if projection_DK is None else x_NLD @ projection_DK
        return x_NLK, log_P[chosen_N]


def patch_log_depth(depth_HW: Tensor, grid: Size, *, patch_size: Size, pixel_size: Size) -> Tensor:
    """Mean log depth of the valid pixels (above 0) of each patch, NaN where there is none.

    ``pixel_size`` is that of the tower's input, which shows the whole picture; the ``grid`` of
    patches of ``patch_size`` may end before it, right and below.

    Returns:
        (h * w,) float64, row-major.
    """
    height, width = depth_HW.shape
    row_H = torch.arange(height) * pixel_size[0] // (height * patch_size[0])
    column_W = torch.arange(width) * pixel_size[1] // (width * patch_size[1])
    patch_HW = row_H[:, None] * grid[1] + column_W
    in_grid_HW = (row_H < grid[0])[:, None] & (column_W < grid[1])
    valid_HW = torch.isfinite(depth_HW) & (depth_HW > 0) & in_grid_HW
    size = grid[0] * grid[1]
    log_N = depth_HW[valid_HW].double().log()
    sums_P = torch.zeros(size, dtype=torch.float64).index_add_(0, patch_HW[valid_HW], log_N)
    counts_P = torch.bincount(patch_HW[valid_HW], minlength=size)
    return sums_P / counts_P  # 0 / 0 is NaN
