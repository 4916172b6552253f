"""From pictures to their depth maps: the one path of ``predict``, ``eval`` and who calls it.

Axes: C depth and confidence, H W a picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.pixels import shown
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.running import in_one_pass
from clipdepth_plugin.arguments import Size, check_type, parse_focal, parse_intrinsics
from clipdepth_plugin.errors import ImageError, quoted
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.framing import framing, known_preprocessing
from clipdepth_plugin.plugin.streams import DepthStream


class PictureDepth:
    """A plug-in as a function from pictures to depth maps at the pictures' own sizes.

    Attributes:
        framing: How pictures are made the tower's input; see ``framing.framing``.
    """

    def __init__(
        self,
        plugin: DepthPlugin,
        preprocessing: Preprocessing | None = None,
        *,
        input_size: Size | None = None,
        stream: DepthStream | None = None,
    ) -> None:
        """Keeps the plug-in, attached or not.

        Args:
            plugin: Head and tower; the head must be in evaluation mode.
            preprocessing: How the host prepares its pictures; None takes what the plug-in knows.
            input_size: (H, W) of the tower's input, in place of the head's and the host's.
            stream: Of the plug-in: pictures are then the frames of its camera, in order, and take a
                tower pass each. Its view should be "all".

        Raises:
            HostError: It is not known how pictures are normalised.
        """
        check_type(plugin, DepthPlugin, "plugin")
        if preprocessing is not None:
            check_type(preprocessing, Preprocessing, "preprocessing")
        known = known_preprocessing(plugin.tower, preprocessing or plugin.preprocessing)
        self.framing = framing(plugin.head.config, known, input_size)
        self._plugin = plugin
        self._stream = stream

    def __call__(
        self,
        images: Sequence[Image.Image],
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
    ) -> list[Tensor]:
        """The depth of pictures, in one tower pass if the tower takes all of their views in one.

        Args:
            images: RGB pictures of any sizes.
            intrinsics: (fx, fy, cx, cy) in their pixels, one for all or one (or None) for each.
            focal_px: The focal length alone, in the same way.

        Returns:
            (1, H, W) float32 metres of each picture (relative: see ``DepthPlugin.depth``), NaN
            where the tower did not see it; (2, H, W) with the confidence behind them where the
            head predicts it.

        Raises:
            ImageError: A picture is not RGB, or the tower takes no pictures of such a size.
            NoDepthError: The depth is not finite.
            HostError: Not as many cameras as pictures, or no cameras of such pictures.
            HeadMismatchError: A camera for a head without a canonical one; or the head is in
                training mode.
        """
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise ImageError(
                f"images: got {quoted(images)}, expected a list of pictures (PIL.Image)"
            )
        if not images:
            return []
        views, placed = shown(images, self.framing)
        rest = iter(views)
        views_of = [[next(rest) for _ in image.views] for image in placed]
        runs = self._runs(placed)
        cameras = _for_each(runs, intrinsics, parse_intrinsics, len(images))
        focals = _for_each(runs, focal_px, parse_focal, len(images))
        maps = []
        for run, camera, focal in zip(runs, cameras, focals, strict=True):
            tower_pass = self._plugin.views_pass([one for some in views_of[run] for one in some])
            if self._stream is not None:
                tower_pass = self._stream.of(tower_pass)
            maps += tower_pass.in_images(placed[run], camera, focal)
        return maps

    def _runs(self, placed: Sequence[ImageViews]) -> Sequence[slice]:
        """Which pictures are seen together."""
        if self._stream is not None:
            return [slice(index, index + 1) for index in range(len(placed))]
        sizes = [{view.view_size for view in image.views} for image in placed]
        return in_one_pass(self._plugin.tower, sizes)


def _for_each(
    runs: Sequence[slice], given: Any, parse: Callable[[Any, int], list[Any]], images: int
) -> list[Any]:
    """What each run is given of what is given for one or for all images."""
    if given is None or len(runs) == 1:
        return [given] * len(runs)
    each = parse(given, images)
    return [each[run] for run in runs]
