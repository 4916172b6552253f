"""Predictors: functions from samples to depth maps; and a head on its tower as one.

Axes: B samples, C colours, H W a picture's own size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.decoders.readout import confidence_of
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.features import one_size
from clipdepth_plugin.maps.geometry import ViewGeometry
from clipdepth_plugin.plugin.estimating import estimate_whole

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.arguments import Intrinsics, Size
    from clipdepth_plugin.data import Sample
    from clipdepth_plugin.evaluation.protocols import Protocol
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

logger = logging.getLogger(__name__)


Predictor = Callable[[Sequence["Sample"]], list[Tensor]]
"""Anything that turns pictures into metres: from the samples' ``image_3HW`` (and ``intrinsics``)
alone to one (1, H, W) float32 map in metres for each, of its picture's size; or (2, H, W), the
second of them the confidence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is measured of one picture, on the CPU.

    Attributes:
        metres_HW: float32, NaN outside what the tower was shown.
        confidence_HW: Likewise, the probability that they are within a factor of 1.25; or None.
    """

    metres_HW: Tensor
    confidence_HW: Tensor | None = None


class HeadPredictor:
    """A head on its tower; the whole picture is squashed to the tower's input, as in training.

    Gives the confidence, too, if the head predicts it. Maps are resized once, from the head's
    native size to the picture's.
    """

    def __init__(self, plugin: DepthPlugin, preprocessing: Preprocessing | None = None) -> None:
        """Keeps the plug-in, attached or not.

        Args:
            plugin: Head and tower; the head must be in evaluation mode.
            preprocessing: What the host's processor says; None takes what the tower says.

        Raises:
            HostError: No preprocessing is known, or the head is in training mode.
        """
        known = preprocessing or plugin.tower.preprocessing
        if known is None:
            raise HostError(
                f"no preprocessing is known for {plugin.tower}: give "
                "preprocessing=... (mean, std, size)"
            )
        if plugin.head.training:
            raise HostError("the head is in training mode: call head.eval() before evaluating")
        self._plugin = plugin
        self._preprocessing = known
        self._warned = False

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """See ``Predictor``."""
        pixels_B3HW = sample_pixels(samples, self._preprocessing)
        features = one_size(self._plugin.features(pixels_B3HW))
        sizes = [tuple(sample.image_3HW.shape[-2:]) for sample in samples]
        maps: dict[tuple[int, ...], Tensor] = {}
        with torch.no_grad():
            for height, width in set(sizes):
                maps[height, width] = predicted_maps(
                    self._plugin, features, (height, width), self._preprocessing.size
                )
        predicted = []
        for index, (size, sample) in enumerate(zip(sizes, samples, strict=True)):
            metres_1HW, *rest = maps[size][index].split(1)
            predicted.append(torch.cat([metres_1HW * self._camera_factor(sample), *rest]))
        return predicted

    def _camera_factor(self, sample: Sample) -> float:
        """True over canonical focal length, for heads with a canonical camera."""
        canonical = self._plugin.head.config.canonical_focal
        if canonical is not None and sample.intrinsics is None and not self._warned:
            logger.warning(
                "%s (and maybe others): no intrinsics; its metres are those of the head's "
                "canonical focal length, %g pixels",
                sample.name,
                canonical,
            )
            self._warned = True
        height, width = sample.image_3HW.shape[-2:]
        return camera_factor(sample.intrinsics, (height, width), self._preprocessing, canonical)


def predicted_maps(
    plugin: DepthPlugin, features: TowerFeatures, size: Size, pixel_size: Size
) -> Tensor:
    """The maps of whole pictures, resized once.

    Args:
        plugin: Head and tower.
        features: Of the pictures, squashed to the tower's input.
        size: (H, W) of the maps.
        pixel_size: Size of that input.

    Returns:
        (B, 1 or 2, H, W) metres, and confidence where the head predicts it.
    """
    estimate = estimate_whole(
        plugin.head, features, size, patch_size=plugin.tower.patch_size, pixel_size=pixel_size
    )
    if estimate.log_scale is None:
        return estimate.metres
    return torch.cat([estimate.metres, confidence_of(estimate.log_scale)], dim=1)


def camera_factor(
    intrinsics: Intrinsics | None,
    image_size: Size,
    preprocessing: Preprocessing,
    canonical: float | None,
) -> float:
    """True over canonical focal length of a picture that is squashed to the tower's input.

    1 if one of them is unknown.

    Args:
        intrinsics: (fx, fy, cx, cy) in pixels of the picture.
        image_size: (H, W) of the picture.
        preprocessing: Its size is the tower's input.
        canonical: Canonical focal length in pixels of that input.
    """
    if intrinsics is None or canonical is None:
        return 1.0
    view = ViewGeometry.squashed(image_size, preprocessing.size)
    fx, fy, _, _ = view.intrinsics(intrinsics)
    return math.sqrt(fx * fy) / canonical


def sample_pixels(samples: Sequence[Sample], preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) the pictures of samples as the tower takes them, squashed to its input size."""
    images = [
        Image.fromarray(sample.image_3HW.permute(1, 2, 0).contiguous().numpy())
        for sample in samples
    ]
    return to_pixels(images, preprocessing)


def predict_samples(
    predict: Predictor, samples: Sequence[Sample], protocol: Protocol
) -> list[Prediction]:
    """Predictions by the protocol: cropped, mirrored, and back at the whole picture; not clipped.

    Confidence is averaged with the mirrored picture's, as metres are.

    Raises:
        DataError: A map is not finite, or of another size than its picture.
    """
    if not samples:
        return []
    boxes = [protocol.seen(*sample.depth_1HW.shape[-2:]) for sample in samples]
    shown = [_cropped(sample, box) for sample, box in zip(samples, boxes, strict=True)]
    maps = _checked(predict(shown), shown)
    if protocol.flip:
        mirrored = [replace(s, image_3HW=s.image_3HW.flip(-1)) for s in shown]
        flipped = _checked(predict(mirrored), shown)
        maps = [(one + other.flip(-1)) / 2 for one, other in zip(maps, flipped, strict=True)]
    whole = []
    for sample, (top, bottom, left, right), map_CHW in zip(samples, boxes, maps, strict=True):
        out_CHW = torch.full((len(map_CHW), *sample.depth_1HW.shape[-2:]), torch.nan)
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


def _checked(maps: Sequence[Tensor], samples: Sequence[Sample]) -> list[Tensor]:
    """(1 or 2, H, W) float32 maps on the CPU."""
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
        if not bool(torch.isfinite(map_CHW).all()):
            raise DataError(f"{sample.name}: the predicted depth is not finite (NaN or infinite)")
        checked.append(map_CHW)
    return checked
