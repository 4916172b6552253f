"""Predictors: functions from samples to depth maps; and a head on its tower as one.

Axes: B samples, C colours, H W a picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.plugin.pictures import PictureDepth

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.data import Sample
    from clipdepth_plugin.evaluation.protocols import Protocol
    from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

Predictor = Callable[[Sequence["Sample"]], list[Tensor]]
"""Anything that turns pictures into metres: from the samples' ``image_3HW`` (and ``intrinsics``)
alone to one (1, H, W) float32 map in metres for each, of its picture's size; or (2, H, W), the
second of them the confidence. NaN where the tower did not see the picture. One that has an
attribute ``relative``, and it is true, gives relative depth, no metres."""


def is_relative(predict: Predictor) -> bool:
    """Whether a predictor gives relative depth."""
    return bool(getattr(predict, "relative", False))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is measured of one picture, on the CPU.

    Attributes:
        depth_HW: float32 metres, or relative depth; NaN outside what the tower was shown.
        confidence_HW: Likewise, the probability that they are within a factor of 1.25; or None.
    """

    depth_HW: Tensor
    confidence_HW: Tensor | None = None


class HeadPredictor:
    """A head on its tower, by ``PictureDepth``: whole pictures or as the head was trained.

    Gives the confidence, too, where the head predicts it.

    Attributes:
        depth_of: From pictures to maps.
        relative: Whether the maps are relative depth, not metres.
    """

    def __init__(
        self,
        plugin: DepthPlugin,
        preprocessing: Preprocessing | None = None,
        *,
        input_size: Size | None = None,
    ) -> None:
        """Keeps the plug-in, attached or not.

        Args:
            plugin: Head and tower; the head must be in evaluation mode.
            preprocessing: See ``PictureDepth``.
            input_size: See ``PictureDepth``.

        Raises:
            HostError: No preprocessing is known, or the head is in training mode.
        """
        if plugin.head.training:
            raise HostError("the head is in training mode: call head.eval() before evaluating")
        self.depth_of = PictureDepth(plugin, preprocessing, input_size=input_size)
        self._head = plugin.head
        self.relative = not plugin.head.config.metric

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """See ``Predictor``; NaN where the tower did not see the picture, or saw one colour."""
        knows_cameras = self._head.config.canonical_focal is not None
        cameras = [sample.intrinsics for sample in samples] if knows_cameras else None
        return self.depth_of([sample.picture for sample in samples], cameras)


def predict_samples(
    predict: Predictor, samples: Sequence[Sample], protocol: Protocol
) -> list[Prediction]:
    """Predictions by the protocol: cropped, mirrored, and back at the whole picture; not clipped.

    Confidence is averaged with the mirrored picture's, as metres are.

    Raises:
        DataError: Relative depth would be averaged; or a map is infinite somewhere or NaN all
            over (where that is not a head's word on a picture of one colour), or of another size
            than its picture.
    """
    if not samples:
        return []
    if protocol.flip and is_relative(predict):
        raise DataError(
            "relative depth of a picture and of its mirror image have scales and shifts of their "
            "own, so they have no mean: measure without it (--no-flip, flip=False)"
        )
    boxes = [protocol.seen(*sample.depth_1HW.shape[-2:]) for sample in samples]
    maybe_empty = isinstance(predict, HeadPredictor)  # it has refused what is not finite
    shown = [_cropped(sample, box) for sample, box in zip(samples, boxes, strict=True)]
    maps = _checked(predict(shown), shown, maybe_empty)
    if protocol.flip:
        mirrored = [replace(s, image_3HW=s.image_3HW.flip(-1)) for s in shown]
        flipped = _checked(predict(mirrored), shown, maybe_empty)
        maps = [(one + other.flip(-1)) / 2 for one, other in zip(maps, flipped, strict=True)]
    whole = []
    for sample, (top, bottom, left, right), map_CHW in zip(samples, boxes, maps, strict=True):
        out_CHW = map_CHW.new_full((len(map_CHW), *sample.depth_1HW.shape[-2:]), torch.nan)
        out_CHW[:, top:bottom, left:right] = map_CHW
        whole.append(Prediction(*out_CHW))
    return whole


def _cropped(sample: Sample, box: tuple[int, int, int, int]) -> Sample:
    """The sample inside a box; the camera's focal length stays, its centre moves."""
    top, bottom, left, right = box
    height, width = sample.depth_1HW.shape[-2:]
    if box == (0, height, 0, width):
        return sample
    camera = sample.intrinsics
    if camera is not None:
        fx, fy, cx, cy = camera
        camera = (fx, fy, cx - left, cy - top)
    image_3HW = sample.image_3HW[:, top:bottom, left:right]
    depth_1HW = sample.depth_1HW[:, top:bottom, left:right]
    return replace(sample, image_3HW=image_3HW, depth_1HW=depth_1HW, intrinsics=camera)


def _checked(maps: Sequence[Tensor], samples: Sequence[Sample], maybe_empty: bool) -> list[Tensor]:
    """(1 or 2, H, W) float32 maps on the CPU, NaN where the tower did not see the picture."""
    checked = []
    for given_CHW, sample in zip(maps, samples, strict=True):
        size = tuple(sample.depth_1HW.shape)
        picture = tuple(sample.image_3HW.shape)
        fits = given_CHW.ndim == 3 and given_CHW.shape[0] in (1, 2)
        if not fits or tuple(given_CHW.shape[1:]) != size[1:] or picture[1:] != size[1:]:
            raise DataError(
                f"{sample.name}: picture {picture}, depth {size} and prediction "
                f"{tuple(given_CHW.shape)} must have one size"
            )
        map_CHW = given_CHW.detach().float().cpu()
        empty = not maybe_empty and bool(map_CHW.isnan().all())
        if empty or bool(map_CHW.isinf().any()):
            raise DataError(f"{sample.name}: the predicted depth is not finite (NaN or infinite)")
        checked.append(map_CHW)
    return checked
