"""FeatureBatch: the input of a training step, from the tower or from the token cache.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from clipdepth_plugin.data.order import EpochPlan
from clipdepth_plugin.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerate import Accelerator

    from clipdepth_plugin.data import Batch
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.training.config import TrainConfig


@dataclass(frozen=True)
class FeatureBatch:
    """One batch of views as features and truth, on the training device.

    Attributes:
        features: What the head reads.
        depth_B1HW: Metres; 0 = invalid.
        valid_B1HW: Which pixels have a depth.
        scale_B: Factor from true metres to what the head is to predict (the canonical camera's);
            ones for a head without one.
        names: The samples' names.
    """

    features: TowerFeatures
    depth_B1HW: Tensor
    valid_B1HW: Tensor
    scale_B: Tensor
    names: list[str]

    @property
    def target_B1HW(self) -> Tensor:
        """The depth that the head is to predict."""
        return self.depth_B1HW * self.scale_B[:, None, None, None]


class FeatureSource(Protocol):
    """A source of batches."""

    def __len__(self) -> int:
        """Batches in an epoch; raises TypeError where that is not known (streams)."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch, in this process's part, from number ``start`` on."""


class TowerSource:
    """Batches from pictures, through the tower."""

    def __init__(
        self,
        loader: Callable[[int, int], Iterable[Batch]],
        read: Callable[[Tensor], TowerFeatures],
        device: torch.device,
        canonical_focal: float | None,
        length: int | None,
    ) -> None:
        """Keeps what it needs.

        Args:
            loader: (epoch, start batch) -> batches.
            read: (B, 3, H, W) pixels -> features.
            device: Where to compute.
            canonical_focal: The head's.
            length: Batches in an epoch; None where that is not known.
        """
        self._loader = loader
        self._read = read
        self._device = device
        self._canonical_focal = canonical_focal
        self._length = length

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("a stream has no length")
        return self._length

    def batches(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """See ``FeatureSource``."""
        for batch in self._loader(epoch, start):
            moved = batch.to(self._device)
            yield FeatureBatch(
                self._read(moved.pixels_B3HW),
                moved.depth_B1HW,
                moved.valid_B1HW,
                camera_scale(moved.intrinsics_B4, self._canonical_focal, moved.names),
                moved.names,
            )


def epoch_plan(
    config: TrainConfig, accelerator: Accelerator, epoch: int, start: int, *, training: bool
) -> EpochPlan:
    """This process's part of an epoch from batch ``start`` on, with or without a cache."""
    return EpochPlan(
        batch_size=config.micro_batch // accelerator.num_processes,
        seed=config.seed,
        epoch=epoch,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_batch=start,
        drop_last=training,
        shuffle=training,
    )


def camera_scale(intrinsics_B4: Tensor, canonical_focal: float | None, names: list[str]) -> Tensor:
    """Canonical over true focal length of each view (Metric3D, arXiv 2307.10984, section 3.2).

    Args:
        intrinsics_B4: (fx, fy, cx, cy) in pixels of the tower's input; NaN where not known.
        canonical_focal: The head's, or None.
        names: Of the samples, for the error.

    Returns:
        (B,) factors; ones without a canonical focal length.

    Raises:
        TrainingError: It is needed and a sample's camera is not known.
    """
    if canonical_focal is None:
        return intrinsics_B4.new_ones(intrinsics_B4.shape[0])
    scale_B = canonical_focal / (intrinsics_B4[:, 0] * intrinsics_B4[:, 1]).sqrt()
    unknown = (~torch.isfinite(scale_B)).nonzero().flatten().tolist()
    if unknown:
        raise TrainingError(
            f"head.options.canonical_focal needs every sample's intrinsics; {names[unknown[0]]} "
            f"has none ({len(unknown)} of {len(names)} in its batch): leave such frames out with "
            "with_camera: true in their data set, or give it intrinsics"
        )
    return scale_B
