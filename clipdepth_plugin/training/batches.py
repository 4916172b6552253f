"""FeatureBatch: the input of a training step, from the tower or from the token cache.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from clipdepth_plugin.data import EpochPlan, ViewMaker
from clipdepth_plugin.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.config import HeadConfig
    from clipdepth_plugin.data import AugmentConfig
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.tower import FrozenTower


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

    def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
        """The batches of one epoch, in this process's part, from number ``start`` on."""


@dataclass(frozen=True)
class SourceContext:
    """What the sources of one run share.

    Attributes:
        config: The run's.
        accelerator: Its processes and device.
        tower: The frozen tower.
        head: The head's config.
        read: (B, 3, H, W) pixels -> the features that the head reads.
        size: (H, W) of the depth maps.
    """

    config: TrainConfig
    accelerator: Accelerator
    tower: FrozenTower
    head: HeadConfig
    read: Callable[[Tensor], TowerFeatures]
    size: Size

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def batch_size(self) -> int:
        """Views in one forward pass of this process."""
        processes: int = self.accelerator.num_processes
        return self.config.micro_batch // processes

    def maker(self, augment: AugmentConfig | None, seed: int) -> ViewMaker:
        """Makes views as this tower sees them."""
        return ViewMaker(self.tower.preprocessing, self.size, augment, seed)

    def plan(self, epoch: int, start: int, *, training: bool) -> EpochPlan:
        """This process's part of an epoch from batch ``start`` on, with or without a cache."""
        return EpochPlan(
            batch_size=self.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_batch=start,
            drop_last=training,
            shuffle=training,
        )

    def batch(
        self,
        features: TowerFeatures,
        depth_B1HW: Tensor,
        intrinsics_B4: Tensor,
        names: list[str],
    ) -> FeatureBatch:
        """A batch of tensors that are on the device."""
        scale_B = camera_scale(intrinsics_B4, self.head.canonical_focal, names)
        return FeatureBatch(features, depth_B1HW, depth_B1HW > 0, scale_B, names)


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
