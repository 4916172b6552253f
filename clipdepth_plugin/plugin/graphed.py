"""Tower and head together as CUDA graphs, one for each shape of pixels: ``DepthPlugin.graph``.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.layouts import PlainLayout
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import HeadMismatchError, HostError
from clipdepth_plugin.maps.placing import at_pixels
from clipdepth_plugin.plugin.checks import check_laid_out, refuse_infinite
from clipdepth_plugin.plugin.estimating import findings, judged, on_heads_device
from clipdepth_plugin.plugin.pass_graph import launched
from clipdepth_plugin.plugin.reading import DepthPass
from clipdepth_plugin.precision import outside_inference, without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.graphs import GraphCache
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


class GraphedDepth:
    """``plugin(pixels)`` as a CUDA graph: tower, head, checks and resize in one launch.

    Recorded at the second call of a shape of pixels; the first runs step by step. The graphs go
    where a weight of the tower or head has moved, or a module was exchanged.
    """

    def __init__(
        self,
        tower: Tower,
        head: DepthHead | FusedHead,
        run: Callable[[Tensor], DepthPass],
        graphs: GraphCache,
    ) -> None:
        """``run``: a pass of the tower alone. See ``DepthPlugin.graph``."""
        if tower.rule.takes != ("images", 3, "H", "W"):
            raise HostError(
                f"{tower} takes ({', '.join(map(str, tower.rule.takes))}): how its tokens lie "
                "depends on data, which a CUDA graph cannot follow; use plugin(pixels)"
            )
        self.graphs = graphs
        self._tower = tower
        self._head = head
        self._run = run
        self._weights = _Weights([tower.module, head])

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Depth of each picture, as ``plugin(pixel_values)`` gives it without gradients.

        Args:
            pixel_values: (B, 3, H, W) where the tower is, normalised as the tower takes them.

        Returns:
            (B, 1, H, W) float32 metres (relative: see ``depth``), the caller's own.

        Raises:
            ImageError: As ``plugin(pixel_values)``.
            NoDepthError: The depth is not finite, or a tap did not fire.
            HostError: No pictures, pixels that are not on a GPU, or tokens that do not lie in rows.
            HeadMismatchError: The head is in training mode.
        """
        check_laid_out(pixel_values, self._tower)
        if self._head.training:
            raise HeadMismatchError(
                "the head is in training mode, and a CUDA graph gives no gradient: call "
                "head.eval() first; to train, call plugin(pixels)"
            )
        if not self.graphs.applies([pixel_values]):
            raise HostError(
                f"plugin.graph() takes one or more pictures on an NVIDIA GPU, outside of other "
                f"graphs; got {tuple(pixel_values.shape)} on {pixel_values.device}. "
                "plugin(pixels) runs everywhere"
            )
        if self._weights.moved():
            self.graphs.clear()
        with outside_inference():
            kind = (self._tower.module.training, _autocast_dtype())
            seen_B, found, depth_B1HW = self.graphs.run_recorded(kind, [pixel_values], self._finish)
        if 0 in (seen := seen_B.tolist()):
            odd = [view for view, is_finite in enumerate(seen) if not is_finite]
            refuse_infinite(odd, self._tower)
        judged(found)
        return depth_B1HW

    def _finish(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Which pictures are finite, ``findings``, and the maps."""
        (pixels_B3HW,) = tensors
        dtype = _autocast_dtype()
        with torch.no_grad():
            # Its cache of cast weights would not outlive a recording.
            with torch.autocast("cuda", dtype, dtype is not None, cache_enabled=False):
                one = self._run(pixels_B3HW)
            if not isinstance(one.layout, PlainLayout):
                raise HostError(
                    f"the tokens of {self._tower} are gathered from rows that a CUDA graph cannot "
                    "look up; use plugin(pixels)"
                )
            (features,) = one.batches
            with without_autocast(pixels_B3HW.device):
                native = launched(self._head, on_heads_device(features, self._head))
            (depth_B1HW,) = at_pixels([native.depth], one.views, self._tower.patch_size)
            seen_B = pixels_B3HW.isfinite().flatten(1).all(dim=1)
            return [seen_B, findings(native.depth, ()), depth_B1HW]


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


class _Weights:
    """Where weights and buffers of modules lie; a graph reads them there."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = [*modules]
        self._look()

    def moved(self) -> bool:
        """Whether one has moved since the last call, or a module was exchanged.

        Loops of one lookup each: a walk over the modules takes ten times as long.
        """
        for siblings, name, child in self._children:
            if siblings.get(name) is not child:
                return self._look()
        for siblings_of, name, address in self._tensors:
            x = siblings_of.get(name)
            if x is None or x.data_ptr() != address:
                return self._look()
        return False

    def _look(self) -> bool:
        modules = list(dict.fromkeys(one for top in self._modules for one in top.modules()))
        self._children = [
            (one._modules, name, child) for one in modules for name, child in one._modules.items()
        ]
        self._tensors = [
            (of_module, name, x.data_ptr())
            for one in modules
            for of_module in (one._parameters, one._buffers)
            for name, x in of_module.items()
            if x is not None
        ]
        return True
