"""FusedHead: the inference form of a depth head, the same function in less time.

Axes: B views, D tower width, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.decoder import Decoder
from clipdepth_plugin.decoders.inputs import checked_features, checked_size
from clipdepth_plugin.decoders.readout import DepthEstimate, calibrated, with_confidence
from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused import compact, dual_path  # noqa: F401 (they register themselves)
from clipdepth_plugin.fused.forms import Packing, fuse
from clipdepth_plugin.fused.graphs import GraphCache
from clipdepth_plugin.precision import without_autocast


class FusedHead(nn.Module):
    """A depth head for inference only: norms folded, convolutions composed, weights packed once.

    Made by ``DepthHead.fused``; takes the same features, gives the same depth and confidence, and
    goes wherever a head goes: ``attach(host, head.fused())``. It holds copies of the weights, so
    that training the head further does not change it.

    On a GPU a call is recorded as a CUDA graph for each shape of its inputs, when that is met for
    the second time, and replayed; inside torch.compile, torch.export and other graphs it is not. A
    caller's autocast changes nothing.
    """

    def __init__(
        self,
        config: HeadConfig,
        decoder: Decoder,
        dtype: torch.dtype | None = None,
        *,
        triton: bool | None = None,
        graphs: int = 8,
    ) -> None:
        """See ``DepthHead.fused``."""
        super().__init__()
        self.config = config
        self.reads_pixels = config.reads_pixels
        own = next(decoder.parameters(), torch.empty(0))
        packing = Packing(own.dtype if dtype is None else dtype, triton)
        self.decoder = fuse(decoder, packing).to(own.device)
        self.graphs = GraphCache(graphs)
        self.eval()

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """As ``DepthHead.forward``.

        Raises:
            KernelError: A gradient is needed, or Triton was asked for and cannot run.
        """
        return self.estimate(features, size).depth

    def forward_with_confidence(
        self, features: TowerFeatures, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``DepthHead.forward_with_confidence``."""
        return with_confidence(self.estimate(features, size))

    def estimate(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None = None,
    ) -> DepthEstimate:
        """Everything that the head predicts, but for auxiliary maps; raises as ``forward``."""
        checked, size = self._checked(features, size)
        there = (checked.context is None, checked.pixels is None)
        kind, tensors = (tuple(checked.levels), checked.grid, size, there), _tensors(checked)
        decode = functools.partial(self._decode, checked, size)
        with without_autocast(tensors[0].device):
            return _estimate(self.graphs.run(kind, tensors, decode))

    def estimate_without_graph(self, features: TowerFeatures) -> DepthEstimate:
        """As ``estimate``, at the native size, by no graph: to be recorded with what is around."""
        checked, _ = self._checked(features, None)
        tensors = _tensors(checked)
        with without_autocast(tensors[0].device):
            return _estimate(self._decode(checked, None, tensors))

    def _checked(
        self, features: TowerFeatures, size: tuple[int, int] | None
    ) -> tuple[TowerFeatures, tuple[int, int] | None]:
        """What is read of features, and a size."""
        weight, size = next(self.parameters()), checked_size(size)
        checked = checked_features(features, self.config, weight)
        given = (*features.levels.values(), features.context, features.pixels)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
            raise KernelError(
                "a fused head gives no gradient, and its features need one: use the plain head, "
                "or run under torch.no_grad()"
            )
        return checked, size

    def _decode(
        self, features: TowerFeatures, size: tuple[int, int] | None, tensors: list[Tensor]
    ) -> list[Tensor]:
        """Depth; behind it the logarithm of its error's scale, where the head has it.

        Of such features, of other ``tensors``.
        """
        rest = iter(tensors)
        given = features.mapped(lambda _: next(rest))
        estimate = calibrated(functools.partial(self.decoder, given), self.config, size)
        return [x for x in (estimate.depth, estimate.log_scale) if x is not None]

    def _load_from_state_dict(self, *args: Any) -> None:
        self.graphs.clear()  # ``assign`` puts other tensors in the weights' place
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.graphs.clear()  # they read the weights where these were
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _tensors(features: TowerFeatures) -> list[Tensor]:
    """All of them, in the order of ``TowerFeatures.mapped``."""
    given = (features.context, features.pixels, *features.levels.values())
    return [x for x in given if x is not None]


def _estimate(maps: list[Tensor]) -> DepthEstimate:
    depth_B1HW, *scales = maps
    return DepthEstimate(depth_B1HW, scales[0] if scales else None)
