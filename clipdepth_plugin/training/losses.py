"""DepthLoss, the training objective, and LossConfig, its weights.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributed as dist
from pydantic import model_validator
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.settings import Idle
from clipdepth_plugin.training.terms.confidence import Confidence
from clipdepth_plugin.training.terms.gradient import Gradient
from clipdepth_plugin.training.terms.log_l1 import LogL1
from clipdepth_plugin.training.terms.silog import Silog
from clipdepth_plugin.training.terms.ssi import Ssi
from clipdepth_plugin.training.terms.ssim import Ssim
from clipdepth_plugin.training.terms.term import LossTerm, Part, Truth, with_scale_share


class LossConfig(Silog, LogL1, Ssim, Gradient, Ssi, Confidence):
    """Weights of the loss; the defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657).

    The base classes are the terms, and naming a term here registers it.
    """

    IDLE: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "gradient_scales",
            lambda loss: loss.gradient == 0 and loss.ssi_gradient == 0,
            "gradient: 0 and ssi_gradient: 0",
        ),
        Idle(
            "trim",
            lambda loss: not any((loss.silog, loss.log_l1, loss.ssi, *loss.auxiliary)),
            "silog, log_l1, ssi and auxiliary: 0",
        ),
        Idle(
            "silog_mean",
            lambda loss: loss.silog == 0 and not any(loss.auxiliary),
            "silog: 0 and no auxiliary outputs weighed",
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        trained = [part for part in self.all_parts() if part.trains_depth]
        if not any(part.weight for part in trained):
            names = ", ".join(part.name for part in trained)
            raise ValueError(f"{names}: all are 0, so nothing would train the output")
        return self

    def all_parts(self) -> list[Part]:
        """The numbers of all terms."""
        return [part for term in _TERMS for part in term.parts(self)]

    def for_head(self, head: HeadConfig, size: Size | None) -> Self:
        """The loss for a head, with its defaults filled in; a ValueError where they conflict."""
        updates: dict[str, Any] = {}
        for term in _TERMS:
            updates |= term.defaults_for(self, head)
        loss = self.model_copy(update=updates)
        loss.refuse_idle("loss.")
        for part in loss.all_parts():
            if part.weight and part.metric != head.metric:
                name = "auxiliary" if part.name.startswith("aux") else part.name
                kind = "metres" if part.metric else "relative depth alone"
                raise ValueError(
                    f"loss.{name}: compares {kind}, and this head has head.options.metric: "
                    f"{str(head.metric).lower()}; leave one of the two out"
                )
        for term in _TERMS:
            term.check(loss, head, size)
        return loss


_TERMS = cast("tuple[type[LossTerm], ...]", LossConfig.__bases__)


@dataclass(frozen=True)
class LossTerms:
    """One batch's loss.

    Attributes:
        total: The weighted sum, with its graph; float32.
        terms: Name -> each part before its weight, detached: ``silog``, ``aux0``, ``ssim``, ...;
            those with weight 0 are left out.
    """

    total: Tensor
    terms: dict[str, Tensor]


class DepthLoss:
    """The weighted sum of the terms of a ``LossConfig``, as ``for_head`` gives it.

    The terms' sums are pooled over the processes first, so each process computes the loss of all
    samples of all processes.
    """

    def __init__(self, config: LossConfig) -> None:
        """Prepares the parts that have a weight."""
        self._parts = [part for part in config.all_parts() if part.weight > 0]
        self._min_depth = config.min_depth

    def __call__(
        self,
        estimate: DepthEstimate,
        depth_B1HW: Tensor,
        valid_B1HW: Tensor,
        scale_share_B: Tensor | None = None,
        weight_B1HW: Tensor | None = None,
    ) -> LossTerms:
        """The loss of one batch; see ``Truth``.

        ``scale_share_B`` is how much of each view's mean error of log depth counts, 0..1; None
        stands for ones.
        """
        truth = Truth(depth_B1HW, valid_B1HW, weight_B1HW)

        def seen(pred_B1HW: Tensor) -> Tensor:
            pred_B1HW = _at_least_32(pred_B1HW)
            if scale_share_B is None:
                return pred_B1HW
            return with_scale_share(pred_B1HW, truth, scale_share_B, self._min_depth)

        log_scale = estimate.log_scale
        estimate = DepthEstimate(
            seen(estimate.depth),
            None if log_scale is None else _at_least_32(log_scale),
            tuple(map(seen, estimate.auxiliary)),
        )
        sums = [part.sums(estimate, truth) for part in self._parts]
        flat_K = _sum_over_processes(torch.cat([one.flatten() for one in sums]))
        pieces = torch.split(flat_K, [one.numel() for one in sums])
        sums = [piece.view_as(one) for one, piece in zip(sums, pieces, strict=True)]
        values = [part.value(one) for part, one in zip(self._parts, sums, strict=True)]
        weighted = [part.weight * x for part, x in zip(self._parts, values, strict=True)]
        return LossTerms(
            torch.stack(weighted).sum().float(),
            {p.name: x.detach().float() for p, x in zip(self._parts, values, strict=True)},
        )


def _at_least_32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values_K: Tensor) -> Tensor:
        total_K = values_K.clone()
        dist.all_reduce(total_K)
        return total_K

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total_K = gradients[0].contiguous().clone()
        dist.all_reduce(total_K)
        return total_K


def _sum_over_processes(values_K: Tensor) -> Tensor:
    """Sums a tensor over all processes; itself where there is one process.

    Its gradient is the sum of the processes' gradients. So a loss of pooled sums, the same number
    in every process, and ``DistributedDataParallel``, which averages gradients, together give the
    gradient of one process with all the samples.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values_K
    total_K: Tensor = _SumOverProcesses.apply(values_K)
    return total_K
