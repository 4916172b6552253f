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

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass, Wanted
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.evaluate import iterate
from clipdepth_plugin.features import one_size

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.data import Sample
    from clipdepth_plugin.features import TowerFeatures

MAX_FEATURES = 6000
"""Features of all levels together; wider towers are projected at random to fit."""

VALIDATION_EVERY = 5
"""One sequence (or picture) in so many is held out."""

_BATCH = 8


def split_samples(
    train: Any, validation: Any | None, max_images: int
) -> tuple[Sequence[Sample], Sequence[Sample], str]:
    """Chooses the pictures to fit and to score on.

    Args:
        train: A data set of ``Sample``.
        validation: Another one, or None to hold out a part of ``train``.
        max_images: Pictures of each; a stream gives its first, others evenly spread ones.

    Returns:
        Both, and how: "given"; "sequence" where every fifth sequence (a name up to its last "/")
        is held out; "tail" where there are fewer than five and the last fifth of the pictures is.

    Raises:
        DataError: Fewer than two pictures to split.
    """
    picked = _Picked.of(train, max_images)
    if validation is not None:
        return picked, _Picked.of(validation, max_images), "given"
    if len(picked) < 2:
        raise DataError(f"{len(picked)} pictures: too few to fit on some and score on others")
    groups: dict[str, list[int]] = {}
    for index in range(len(picked)):
        groups.setdefault(picked.name(index).rpartition("/")[0], []).append(index)
    if len(groups) >= VALIDATION_EVERY:
        held = {i for n, g in enumerate(groups.values(), 1) if n % VALIDATION_EVERY == 0 for i in g}
        split = "sequence"
    else:
        held = set(range(len(picked) - max(1, len(picked) // VALIDATION_EVERY), len(picked)))
        split = "tail"
    fitted = [index for index in range(len(picked)) if index not in held]
    return picked.only(fitted), picked.only(sorted(held)), split


class PatchReader:
    """Tokens and log depths of the patches of pictures.

    Attributes:
        levels: All levels of the tower, 0 to its depth.
        features: K; wide towers are projected at random so that all levels have 6000 together.
    """

    def __init__(
        self, tower: Tower, preprocessing: Preprocessing, patches: int | None, seed: int
    ) -> None:
        """Keeps the tower, which is tapped only while it runs.

        Args:
            tower: From ``choose_tower``.
            preprocessing: From a picture to the tower's input.
            patches: Patches of each picture, at random; None takes all.
            seed: Of the patches and of the projection.
        """
        self.levels = tuple(range(tower.depth + 1))
        self.features = min(tower.width, MAX_FEATURES // len(self.levels))
        recorder = PassRecorder(Wanted(tower, self.levels), TowerPass)
        taps = Taps(tower.module, tower, recorder, owner=self)
        self._runner = TowerRunner(tower, taps, recorder)
        self._preprocessing = preprocessing.whole()
        self._patch_size = tower.patch_size
        self._patches = patches
        self._random = torch.Generator().manual_seed(seed)
        self._projection_DK: Tensor | None = None
        if self.features < tower.width:
            shape = (tower.width, self.features)
            self._projection_DK = torch.linalg.qr(torch.randn(shape, generator=self._random)).Q

    def tokens(self, samples: Sequence[Sample]) -> TowerFeatures:
        """All levels, each (B, P, D), of samples' pictures, without a graph."""
        pixels_B3HW = to_pixels([sample.picture for sample in samples], self._preprocessing)
        return one_size(self._runner.run(pixels_B3HW, {}).features)

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (pictures of a batch, their tokens (N, L, K) float32, mean log depths (N,))."""
        for start in range(0, len(samples), _BATCH):
            batch = [samples[i] for i in range(start, min(start + _BATCH, len(samples)))]
            features = self.tokens(batch)
            pieces = [
                self._patches_of(features, index, sample.depth_1HW[0])
                for index, sample in enumerate(batch)
            ]
            x_NLK, y_N = (torch.cat(column) for column in zip(*pieces, strict=True))
            yield len(batch), x_NLK, y_N

    def _patches_of(
        self, features: TowerFeatures, index: int, depth_HW: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_P = patch_log_depth(
            depth_HW,
            features.grid,
            patch_size=self._patch_size,
            pixel_size=self._preprocessing.size,
        )
        chosen_N = self._chosen(log_P)
        tokens_PD = (features.levels[level][index].cpu() for level in self.levels)
        x_NLD = torch.stack([one_PD[chosen_N].float() for one_PD in tokens_PD], dim=1)
        projection_DK = self._projection_DK
        x_NLK = x_NLD if projection_DK is None else x_NLD @ projection_DK
        return x_NLK, log_P[chosen_N]

    def _chosen(self, log_P: Tensor) -> Tensor:
        valid_N = torch.isfinite(log_P).nonzero()[:, 0]
        if self._patches is None or len(valid_N) <= self._patches:
            return valid_N
        return valid_N[torch.randperm(len(valid_N), generator=self._random)[: self._patches]]


def patch_log_depth(depth_HW: Tensor, grid: Size, *, patch_size: Size, pixel_size: Size) -> Tensor:
    """Mean log depth of the valid pixels (above 0) of each patch, NaN where there is none.

    Args:
        depth_HW: Metres, of the whole picture.
        grid: (h, w); the picture may go on beyond it, right and below.
        patch_size: (H, W) of a patch, in pixels of the tower's input.
        pixel_size: (H, W) of that input, which shows the whole picture.

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


class _Picked(Sequence["Sample"]):
    """Some samples of a data set; a map-style one reads them on access."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    @classmethod
    def of(cls, dataset: Any, max_images: int) -> _Picked:
        """Evenly spread samples; of a stream its first ones."""
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            count = min(len(dataset), max_images)
            return cls(dataset, [i * len(dataset) // count for i in range(count)])
        first = list(islice(iterate(dataset), max_images))
        return cls(first, range(len(first)))

    def only(self, chosen: Sequence[int]) -> _Picked:
        """Some of these."""
        return _Picked(self._source, [self._indices[i] for i in chosen])

    def name(self, index: int) -> str:
        """The sample's name, without reading it where the data set knows."""
        known = getattr(self._source, "name", None)
        chosen = self._indices[index]
        return str(self._source[chosen].name if known is None else known(chosen))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._source[self._indices[index]]
