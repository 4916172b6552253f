"""A plug-in as a torch module: pixels in, the tower alone runs, depth out.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.running import TowerRunner, packed
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.features import TowerFeatures, one_size
from clipdepth_plugin.fused.graphs import GraphCache
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.plugin.checks import check_laid_out, check_pixels
from clipdepth_plugin.plugin.graphed import GraphedDepth
from clipdepth_plugin.plugin.reading import DepthPass

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


class TowerCalls(nn.Module):
    """Runs the tower alone, without the rest of its host; what the host's passes gave stays."""

    head: DepthHead | FusedHead
    tower: Tower
    _runner: TowerRunner

    def forward(
        self,
        pixel_values: Tensor,
        *,
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
        **tower_kwargs: Any,
    ) -> Tensor | list[Tensor]:
        """Runs the tower alone, no further than needed, and the head.

        Gradients reach the head, never the tower. Works attached or not; ``depth`` stays.

        Args:
            pixel_values: Normalised, and laid out as the tower takes them: (B, 3, H, W), or the
                packed patches of towers that take those.
            intrinsics: As ``predict``, in pixels of the tower's input.
            focal_px: Likewise.
            tower_kwargs: Passed on to the tower: what else it needs (``grid_thw`` ...).

        Returns:
            (B, 1, H, W) float32 metres (relative: see ``depth``); for views of several sizes a
            list of (1, H, W). Views of one colour, which have no depth in ``depth``, have a map
            like any other here.

        Raises:
            ImageError: No floats, not of the tower's shape, smaller than a patch, or not finite;
                names the images.
            NoDepthError: A tap did not fire; or the head is in evaluation mode without gradients
                and its depth is not finite (not checked in compiled code).
            HostError: Not as many cameras as views, or no cameras.
            HeadMismatchError: A camera was given to a head that was trained without one.
        """
        check_pixels(pixel_values, self.tower)
        if pixel_values.ndim == 4 and len(pixel_values) == 0:  # hosts' own towers break on it
            none_01HW = torch.zeros((0, 1, *pixel_values.shape[-2:]), dtype=torch.float32)
            return none_01HW.to(next(self.head.parameters()).device)
        run = self.tower_pass(pixel_values, **tower_kwargs)
        return run.with_graph(intrinsics, focal_px)

    def graph(self, limit: int = 4) -> GraphedDepth:
        """``plugin(pixels)`` as one CUDA graph of tower and head, for the least time on a GPU.

        Args:
            limit: CUDA graphs that are kept, one for each shape of pixels.

        Returns:
            A function of pixels alone: ``plugin.graph()(pixels)`` gives metres (B, 1, H, W). It
            works attached or not, and ``depth`` stays.

        Raises:
            HostError: The tower takes more than pictures, and how its tokens lie depends on data.
        """
        return GraphedDepth(self.tower, self.head, self.tower_pass, GraphCache(limit))

    def features(
        self, pixel_values: Tensor, **tower_kwargs: Any
    ) -> TowerFeatures | list[TowerFeatures]:
        """What ``forward`` gives the head to read: for training and caching.

        Arguments and errors are those of ``forward``, but that pixels may be infinite or NaN.

        Returns:
            The features of all views; for views of several sizes a list in the views' order, each
            of it the neighbours of one size.
        """
        check_laid_out(pixel_values, self.tower)
        empty = pixel_values.ndim == 4 and len(pixel_values) == 0  # hosts' own towers break on it
        if empty:
            pixel_values = pixel_values.new_zeros(1, *pixel_values.shape[1:])
        features = self.tower_pass(pixel_values, **tower_kwargs).features
        return one_size(features).mapped(lambda x: x[:0]) if empty else features

    def tower_pass(self, pixel_values: Tensor, **tower_kwargs: Any) -> DepthPass:
        """One pass of the tower alone, as ``capture`` collects the host's; ``depth`` stays."""
        check_laid_out(pixel_values, self.tower)
        return cast("DepthPass", self._runner.run(pixel_values, tower_kwargs))

    def views_pass(self, views: Sequence[Tensor]) -> DepthPass:
        """As ``tower_pass``, of normalised views (3, H, W) that the tower's packing is left to.

        Raises:
            ImageError: The tower takes none of such sizes in one pass, or no pictures alone.
        """
        pixels, said = packed(self.tower, views)
        return self.tower_pass(pixels, **said)
