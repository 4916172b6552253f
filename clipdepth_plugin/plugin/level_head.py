"""A head as a module of plain tensors and one grid: what graphs and engines are made of.

Axes: B views, N = h * w patch tokens, D tower width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.hooks import in_graph
from clipdepth_plugin.adapters.sharing import SharedCopy
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.readout import DepthEstimate, confidence_of
from clipdepth_plugin.errors import FeaturesError, HostError, quoted
from clipdepth_plugin.features import TowerFeatures, Views
from clipdepth_plugin.lenses import LensCheck
from clipdepth_plugin.maps.cameras import camera_scales, views_themselves
from clipdepth_plugin.maps.placing import at_pixels, whole_views
from clipdepth_plugin.plugin.estimating import check_finite, without_depth
from clipdepth_plugin.precision import without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


class LevelHead(nn.Module):
    """A head on the levels of a tower that runs elsewhere, for views of one size.

    It shares the head's weights, and is in evaluation mode. ``DepthTower.level_head`` has one.

    Attributes:
        levels: The levels that it takes, in their order.
    """

    def __init__(
        self,
        head: DepthHead | FusedHead,
        views: Views,
        patch_size: Size,
        *,
        native: bool = False,
    ) -> None:
        """Keeps the head and the size of views.

        Args:
            head: The head.
            views: The grid of the tokens, and the size of the maps.
            patch_size: (height, width) of a patch in pixels.
            native: See ``DepthTower``.
        """
        super().__init__()
        self.head = SharedCopy(head).of(head)
        self.config = head.config
        self.levels: tuple[int, ...] = head.config.levels
        self._views = views
        self._patch_size = patch_size
        self._place = whole_views if native else at_pixels
        self._lens = LensCheck()

    def forward(
        self,
        levels: Sequence[Tensor],
        context: Tensor | None = None,
        pixels: Tensor | None = None,
        focal_px: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Depth of each view.

        Args:
            levels: (B, h*w, D) patch tokens of each of the levels, row-major.
            context: (B, D), for heads with FiLM.
            pixels: (B, 3, H, W) as the tower takes them, for heads that read them.
            focal_px: (B,) focal lengths in pixels of the tower's input, for heads with a canonical
                camera. None: the canonical one.

        Returns:
            (B, 1, H, W) float32 metres at the size of views (``native``: the head's own), and where
            the head has it confidence of that size.

        Raises:
            FeaturesError: A level, the context or the pixels are missing, or of another shape.
            HeadMismatchError: A camera for a head that was trained without one.
            HostError: Not as many cameras as views, or no cameras; not in graphs.
            NoDepthError: The depth is not finite; not in graphs.
        """
        if len(levels) != len(self.levels):
            raise FeaturesError(f"got {len(levels)} levels, expected those of {self.levels}")
        by_level = dict(zip(self.levels, levels, strict=True))
        return self.of(TowerFeatures(by_level, context, self._views.grid, pixels), focal_px)

    def of(
        self,
        features: TowerFeatures,
        focal_px: Tensor | None = None,
        ranges: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """As ``forward``; NaN for views of one colour, by their ``ranges``."""
        with without_autocast(next(iter(features.levels.values())).device):
            native = self.head.estimate(features)
        if not in_graph():
            check_finite([native.depth], ranges)
        for range_B in ranges:
            native = without_depth(native, range_B)
        if focal_px is not None:
            scales_B = self._scales(focal_px, native.depth)
            native = native._replace(depth=native.depth * scales_B[:, None, None, None])
        return self._placed(native)

    def _placed(self, native: DepthEstimate) -> tuple[Tensor, ...]:
        (depth_B1HW,) = self._place([native.depth], [self._views], self._patch_size)
        if not self.config.confidence or native.log_scale is None:
            return (depth_B1HW,)
        (log_scale_B1HW,) = self._place([native.log_scale], [self._views], self._patch_size)
        return depth_B1HW, confidence_of(log_scale_B1HW)

    def _scales(self, focal_px: Tensor, depth_B1HW: Tensor) -> Tensor:
        """(B,) factors of the depth, as ``camera_scales`` gives them."""
        size, config = self._views.pixel_size, self.config
        if not isinstance(focal_px, Tensor) or focal_px.shape != depth_B1HW.shape[:1]:
            raise HostError(
                f"focal_px: got {quoted(focal_px)}, expected a tensor of {len(depth_B1HW)} focal "
                "lengths in pixels of the tower's input, one for each view"
            )
        canonical = config.focal_at(size)
        if canonical is not None and in_graph():
            return focal_px.to(depth_B1HW) / canonical
        images = views_themselves([size] * len(depth_B1HW))
        scales = camera_scales(config, images, None, focal_px.tolist(), self._lens)
        return torch.tensor(scales, dtype=torch.float32, device=depth_B1HW.device)
