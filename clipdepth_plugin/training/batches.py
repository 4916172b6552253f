"""FeatureBatch, the input of a training step, and TowerSource, which makes it from pictures.

Axes: B views, P pictures, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.data import (
    EpochPlan,
    Mixture,
    Reading,
    StreamMixture,
    ViewMaker,
    make_loader,
)
from clipdepth_plugin.data.items import FULL_WEIGHT
from clipdepth_plugin.data.order import EpochOrder
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.features import one_size

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.config import HeadConfig
    from clipdepth_plugin.data import AugmentConfig
    from clipdepth_plugin.features import Run, TowerFeatures
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.tower import FrozenTower
    from clipdepth_plugin.training.trained import PlainRun


@dataclass(frozen=True)
class FeatureBatch:
    """One batch of views as features and truth, on the training device.

    Attributes:
        runs: What the head reads, neighbours of one size together.
        depth_B1HW: Metres, for a head of relative depth inverse depth; 0 = invalid.
        valid_B1HW: Which pixels have a depth.
        scale_B: Factor from true metres to what the head is to predict (the canonical camera's);
            ones for a head without one.
        names: The samples' names.
        parts_B: Number of each sample's set, as the config lists them.
        scale_share_B: How much of each view's scale counts in the loss; None: all of it.
        weight_B1HW: Float, 0..1, how much each pixel counts in the loss; None: all the same.
        inverse: Whether depth is inverse depth.
    """

    runs: list[Run]
    depth_B1HW: Tensor
    valid_B1HW: Tensor
    scale_B: Tensor
    names: list[str]
    parts_B: Tensor
    scale_share_B: Tensor | None = None
    weight_B1HW: Tensor | None = None
    inverse: bool = False

    @property
    def features(self) -> TowerFeatures:
        """Those of views of one size; a FeaturesError where they are of several."""
        return one_size([run.features for run in self.runs])

    @property
    def plain_runs(self) -> list[PlainRun]:
        """``runs`` as ``TrainedHead`` takes them."""
        return [
            (one.levels, one.context, one.pixels, one.grid, pixel_size)
            for one, pixel_size in self.runs
        ]

    @property
    def target_B1HW(self) -> Tensor:
        """The depth that the head is to predict."""
        return self.depth_B1HW * self.scale_B[:, None, None, None]


@dataclass(frozen=True)
class Truths:
    """What is known of the depth of a batch's views, as data and cache have it.

    Attributes:
        depth_B1HW: In the units of each view's set; 0 = invalid.
        intrinsics_B4: See ``Batch``.
        weight_B1HW: uint8, 255 being the whole; None: all pixels count the same.
        relative: Whether each of the sets has inverse depth, not metres.
    """

    depth_B1HW: Tensor
    intrinsics_B4: Tensor
    weight_B1HW: Tensor | None
    relative: tuple[bool, ...]

    def inverse_depth(self, parts_B: Tensor) -> Tensor:
        """(B, 1, H, W) inverse depth of views of these sets; 0 = invalid."""
        relative_B = torch.tensor(self.relative, device=parts_B.device)[parts_B]
        given = relative_B[:, None, None, None] | (self.depth_B1HW <= 0)
        return torch.where(given, self.depth_B1HW, 1 / self.depth_B1HW)


class FeatureSource(Protocol):
    """A source of batches."""

    def __len__(self) -> int:
        """Batches in an epoch; raises TypeError where that is not known (streams)."""

    def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
        """The batches of one epoch, in this process's part, from number ``start`` on."""


@dataclass(frozen=True)
class SourceContext:
    """What the sources of one run share; ``read`` makes features of views (3, H, W)."""

    config: TrainConfig
    accelerator: Accelerator
    tower: FrozenTower
    head: HeadConfig
    read: Callable[[Sequence[Tensor]], list[Run]]
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
        runs: list[Run],
        truth: Truths,
        names: list[str],
        parts_B: Tensor,
        *,
        training: bool,
    ) -> FeatureBatch:
        """A batch of tensors that are on the device."""
        shares = [one.scale_share for one in self.config.data.train]
        share_B = free_B = None
        if training and any(share != 1 for share in shares):
            share_B = torch.tensor(shares, device=parts_B.device)[parts_B]
            free_B = share_B == 0
        scale_B = camera_scale(truth.intrinsics_B4, self.head.canonical_focal, names, free_B)
        depth_B1HW = truth.depth_B1HW if self.head.metric else truth.inverse_depth(parts_B)
        valid_B1HW, weight_B1HW = depth_B1HW > 0, None
        if training and truth.weight_B1HW is not None:
            weight_B1HW = truth.weight_B1HW.float() / FULL_WEIGHT
            valid_B1HW = valid_B1HW & (weight_B1HW > 0)
        own = (scale_B, names, parts_B, share_B, weight_B1HW, not self.head.metric)
        return FeatureBatch(runs, depth_B1HW, valid_B1HW, *own)


class TowerSource:
    """Batches from pictures, through the tower."""

    def __init__(
        self, context: SourceContext, data: Mixture | StreamMixture, *, training: bool
    ) -> None:
        """Prepares to read: shuffled and augmented in training, else in order and plain."""
        config = context.config
        self._context, self._data, self._training = context, data, training
        self._maker = context.maker(config.augment if training else None, config.seed)
        self._reading = Reading(
            workers=config.workers,
            bad_file_limit=config.bad_file_limit,
            pin_memory=context.device.type == "cuda",
        )

    def __len__(self) -> int:
        if not isinstance(self._data, Mixture):
            raise TypeError("a stream has no length")
        plan = self._context.plan(0, 0, training=self._training)
        return len(EpochOrder(plan, self._data.counts, self._data.repeats))

    def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
        """See ``FeatureSource``."""
        context = self._context
        plan = context.plan(epoch, start, training=self._training)
        for batch in make_loader(self._data, self._maker, plan, self._reading):
            moved = batch.to(context.device)
            runs = context.read(moved.views)
            maps = (moved.depth_B1HW, moved.intrinsics_B4, moved.weight_B1HW)
            truth, own = Truths(*maps, self._data.relative), (moved.names, moved.parts_B)
            yield context.batch(runs, truth, *own, training=self._training)


def first_pictures(context: SourceContext, data: Mixture | StreamMixture, count: int) -> Tensor:
    """The first ``count`` validation pictures, (P, 3, H, W) uint8 at the output's size."""
    preprocessing = context.tower.preprocessing
    seed, reading = context.config.seed, Reading(bad_file_limit=context.config.bad_file_limit)
    plan = EpochPlan(batch_size=count, seed=seed, epoch=0, drop_last=False, shuffle=False)
    batches = make_loader(data, context.maker(None, 0), plan, reading)
    std_311 = torch.tensor(preprocessing.std).view(3, 1, 1)
    mean_311 = torch.tensor(preprocessing.mean).view(3, 1, 1)
    views = (view_3HW * std_311 + mean_311 for view_3HW in next(iter(batches)).views)
    rgb_P3HW = torch.cat([F.interpolate(one[None], context.size, mode="area") for one in views])
    return (rgb_P3HW * 255).round().clamp(0, 255).to(torch.uint8)


def camera_scale(
    intrinsics_B4: Tensor,
    canonical_focal: float | None,
    names: list[str],
    free_B: Tensor | None = None,
) -> Tensor:
    """Canonical over true focal length of each view (Metric3D, arXiv 2307.10984, section 3.2).

    ``free_B`` says which views' scale counts nowhere, so that their camera need not be known.

    Returns:
        (B,) factors; ones without a canonical focal length.

    Raises:
        TrainingError: It is needed and a sample's camera is not known.
    """
    if canonical_focal is None:
        return intrinsics_B4.new_ones(intrinsics_B4.shape[0])
    scale_B = canonical_focal / (intrinsics_B4[:, 0] * intrinsics_B4[:, 1]).sqrt()
    if free_B is not None:
        scale_B = scale_B.where(~free_B, 1.0)
    unknown = (~torch.isfinite(scale_B)).nonzero().flatten().tolist()
    if unknown:
        raise TrainingError(
            f"head.options.canonical_focal needs every sample's intrinsics; {names[unknown[0]]} "
            f"has none ({len(unknown)} of {len(names)} in its batch): leave such frames out with "
            "with_camera: true in their data set, give it intrinsics, or train on it with "
            "scale_share: 0"
        )
    return scale_B
