"""What a head gives at measured points, before any calibration of its.

Axes: P pictures, K points of a picture (padded), H W a picture's own size. Logs of metres of the
head's canonical camera where it has one.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipdepth_plugin.arguments import check_type, parse_count
from clipdepth_plugin.calibrating.groups import grouped
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.data import Sample
from clipdepth_plugin.data.points import PointsFile
from clipdepth_plugin.decoders.readout import CONFIDENT_FACTOR
from clipdepth_plugin.errors import DataError, HeadMismatchError
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.evaluation.protocols import SMALLEST_DEPTH
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.lenses import LensCheck
from clipdepth_plugin.maps.cameras import camera_scales
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

logger = logging.getLogger(__name__)

MOST_OF_A_PICTURE, MOST = 500, 10_000
"""Points that are taken, evenly, of a picture that has more, and about how many of all."""

_WIDE = 30.0
"""Confidence scale of the head that is read: no confidence is so near 1 that its logarithm is
lost."""

_NAMED = 10

_ONE_LENS = 1.05
"""Largest ratio of the focal lengths of one picture's views: sizes are whole pixels."""


class Points(NamedTuple):
    """The head and the truth at the points.

    Attributes:
        group_P: Number of each picture's group.
        log_pred_PK: What the decoder gives.
        log_true_PK: What was measured.
        log_spread_PK: Log of the predicted error's scale; None for heads without confidence.
        valid_PK: Which are points.
    """

    group_P: Tensor
    log_pred_PK: Tensor
    log_true_PK: Tensor
    log_spread_PK: Tensor | None
    valid_PK: Tensor

    @property
    def weight_PK(self) -> Tensor:
        """Each picture weighs the same; the sum is 1."""
        return self.valid_PK / self.valid_PK.sum(dim=1, keepdim=True) / len(self.valid_PK)

    @property
    def groups(self) -> list[int]:
        """The numbers of the groups."""
        return sorted(set(self.group_P.tolist()))

    def where(self, chosen_P: Tensor) -> Points:
        """Some of the pictures."""
        return Points(*(None if x is None else x[chosen_P] for x in self))  # type: ignore[arg-type]

    def split(self, group: int) -> tuple[Points, Points]:
        """All but a group, and the group."""
        held_P = self.group_P == group
        return self.where(~held_P), self.where(held_P)


@dataclass(frozen=True)
class Readings:
    """Points, and what became of the others.

    Attributes:
        points: Those that the fit takes.
        names: Of their P pictures.
        grouping: What the groups are, for reports.
        measured: Nearest and farthest measured depth in metres.
        skipped: Names of pictures without a point.
        unseen: Measured pixels that the tower was not shown.
    """

    points: Points
    names: tuple[str, ...]
    grouping: str
    measured: tuple[float, float]
    skipped: tuple[str, ...]
    unseen: int


def uncalibrated(head: DepthHead) -> DepthHead:
    """The same weights, without the calibration and with confidences that can be inverted.

    Raises:
        HeadMismatchError: The head's depth is relative.
    """
    check_type(head, DepthHead, "head", HeadMismatchError)
    if not head.config.metric:
        raise HeadMismatchError(
            "this head's depth is relative (config.metric is False): inverse depth with a scale "
            "and shift of each picture's own, which points of some pictures do not tell for any "
            "other. Train a head on metric depth (a metric teacher, or measured depth)"
        )
    raw = copy.copy(head)
    raw.config = head.config.model_copy(update=_changes(head.config))
    return raw


def _changes(config: HeadConfig) -> dict[str, Any]:
    return {"calibration": None, **({"confidence_scale": _WIDE} if config.confidence else {})}


def read_points(
    plugin: DepthPlugin,
    dataset: Iterable[Sample],
    *,
    batch_size: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> Readings:
    """Reads a head at the points of a data set.

    Args:
        plugin: Of the ``uncalibrated`` head and the tower that it is for, attached or not.
        dataset: A ``PointsFile``, or a set whose depth is measured; each sample once.
        batch_size: Pictures in one tower pass.
        advance: Called with the number of pictures read since the last call.

    Raises:
        DataError: No point was seen by the tower; of a points file, any was not; or a camera is
            not known that the head's metres depend on.
        HeadMismatchError: The head is not ``uncalibrated``.
    """
    check_type(plugin, DepthPlugin, "plugin", HeadMismatchError)
    check_type(dataset, Iterable, "dataset", DataError)
    head, batch_size = plugin.head, parse_count(batch_size, "batch_size")
    if not isinstance(head, DepthHead) or head.config.model_copy(update=_changes(head.config)) != (
        head.config
    ):
        raise HeadMismatchError("points are read with DepthPlugin(host, uncalibrated(head), ...)")
    predict = HeadPredictor(plugin)
    count = len(dataset) if isinstance(dataset, Sized) else None
    most = min(MOST_OF_A_PICTURE, max(8, MOST // max(count or 1, 1)))
    rows: list[Tensor] = []
    names: list[str] = []
    skipped: list[str] = []
    unseen: list[str] = []
    ends, lost, numbered = (math.inf, 0.0), 0, enumerate(dataset)
    while batch := list(islice(numbered, batch_size)):
        _check_cameras([sample for _, sample in batch], head.config)
        maps = predict([sample for _, sample in batch])
        for (index, sample), map_CHW in zip(batch, maps, strict=True):
            advance(1)
            truth_HW = sample.depth_1HW[0].double()
            known_HW = (truth_HW >= SMALLEST_DEPTH) & truth_HW.isfinite()
            seen_HW = known_HW & map_CHW[0].isfinite().cpu()
            lost += int(known_HW.sum() - seen_HW.sum())
            if isinstance(dataset, PointsFile):
                missed = (known_HW & ~seen_HW).nonzero().tolist()
                unseen += [f"line {dataset.line(index, *one)}: {sample.name}" for one in missed]
            if not seen_HW.any():
                skipped.append(sample.name)
                continue
            names.append(sample.name)
            measured_N = truth_HW[seen_HW]
            ends = min(ends[0], float(measured_N.min())), max(ends[1], float(measured_N.max()))
            scale = _camera_scale(sample, predict, head.config)
            rows.append(_row(map_CHW.double().cpu(), truth_HW, seen_HW, scale, most))
    _check_seen(dataset, unseen, len(names), lost)
    independent = isinstance(dataset, PointsFile)
    group_P, grouping = grouped(names, independent=independent)
    points = _padded(rows, group_P)
    return Readings(points, tuple(names), grouping, ends, tuple(skipped), lost)


def _row(map_CHW: Tensor, truth_HW: Tensor, seen_HW: Tensor, scale: float, most: int) -> Tensor:
    """(2 or 3, K): log prediction, log truth, and log of the predicted error's scale."""
    seen_N = seen_HW.flatten().nonzero()[:, 0]
    even = torch.linspace(0, len(seen_N) - 1, min(most, len(seen_N)), dtype=torch.float64)
    taken_K = seen_N[even.round().long()]
    maps = torch.cat([map_CHW, truth_HW[None]]).flatten(1)[:, taken_K]
    # A relu's depth may be 0; as it is measured.
    logs = torch.stack([maps[0].clamp_min(SMALLEST_DEPTH), maps[-1]]).log() - math.log(scale)
    if len(map_CHW) == 1:
        return logs
    # The inverse of readout.confidence_of.
    spread_K = -math.log(CONFIDENT_FACTOR) / torch.log1p(-maps[1]) / _WIDE
    return torch.cat([logs, spread_K.log()[None]])


def _padded(rows: Sequence[Tensor], group_P: Tensor) -> Points:
    longest = max(row.shape[1] for row in rows)
    whole = torch.zeros(len(rows), len(rows[0]) + 1, longest, dtype=torch.float64)
    for place, row in enumerate(rows):
        whole[place, :-1, : row.shape[1]] = row
        whole[place, -1, : row.shape[1]] = 1
    maps = [*whole.unbind(dim=1)]
    spread_PK = maps[2] if len(maps) == 4 else None
    return Points(group_P, maps[0], maps[1], spread_PK, maps[-1] > 0)


def _camera_scale(sample: Sample, predict: HeadPredictor, config: HeadConfig) -> float:
    """Factor from the canonical camera's metres to those of the sample's."""
    if config.canonical_focal is None:
        return 1.0
    views = predict.depth_of.framing.views((sample.image_3HW.shape[1], sample.image_3HW.shape[2]))
    found = camera_scales(config, [views], [sample.intrinsics], None, LensCheck())
    scales = [scale for scale in found if scale is not None]
    if max(scales) > min(scales) * _ONE_LENS:
        raise HeadMismatchError(
            f"{sample.name}: the tower sees it as views of several focal lengths (tiles and an "
            "overview), whose metres a canonical camera scales one by one, so one line through "
            "their joined map is not the head's: calibrate a head of resize: whole, or one "
            "without canonical_focal"
        )
    return scales[0]


def _check_cameras(samples: Sequence[Sample], config: HeadConfig) -> None:
    unknown = [sample.name for sample in samples if sample.intrinsics is None]
    if config.canonical_focal is not None and unknown:
        raise DataError(
            f"{unknown[0]}: its focal length is not known, and this head's metres grow with it: a "
            "scale fitted without it would hold for that lens alone, and be wrong for whoever "
            "gives one. Give focal_px (a column of the points) or intrinsics (of the set; "
            "with_camera: true leaves out pictures without)"
        )


def _check_seen(dataset: Iterable[Sample], unseen: list[str], pictures: int, lost: int) -> None:
    why = "the head's resize rule (config.resize) crops pictures, or the picture is of one colour"
    if unseen and isinstance(dataset, PointsFile):
        more = [f"and {len(unseen) - _NAMED} more"] if unseen[_NAMED:] else []
        lines = "".join(f"\n  {one}" for one in [*unseen[:_NAMED], *more])
        raise DataError(
            f"{dataset.path}: {len(unseen)} points lie where the tower was not shown the picture "
            f"({why}); measure others:{lines}"
        )
    if not pictures:
        raise DataError(
            f"no picture has a measured depth where the tower was shown it ({why}); {lost} "
            "measured pixels lie elsewhere"
        )
    if lost:
        logger.warning("%d pixels with depth are not used: %s", lost, why)
