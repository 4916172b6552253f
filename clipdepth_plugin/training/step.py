"""One optimiser step: learning rate, forward, loss, backward, clipping, update.

Axes: B views.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.losses import DepthLoss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.decoders.readout import DepthEstimate
    from clipdepth_plugin.training.batches import FeatureBatch
    from clipdepth_plugin.training.config import TrainConfig


OVERFLOWS = 32
"""Steps in a row that fp16 may skip: its loss scale is halved each time, from 2^16 to nothing."""


@dataclass(frozen=True)
class StepResult:
    """Means over the accumulated batches of all processes; the norm is before clipping."""

    loss: float
    terms: dict[str, float]
    gradient_norm: float


class Stepper:
    """Makes optimiser steps; its random numbers come from a stream of its own."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimiser: Any,
        config: TrainConfig,
        size: tuple[int, int],
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._optimiser = optimiser
        self._clip = math.inf if config.clip is None else config.clip
        self._may_overflow = config.precision == "fp16"
        self._skipped = 0
        self._loss = DepthLoss(config.loss)
        self._size = size
        seeded = torch.Generator().manual_seed(config.seed + 1000003 * accelerator.process_index)
        self.rng = {"cpu": seeded.get_state()}
        if accelerator.device.type == "cuda":
            on_gpu = torch.Generator(accelerator.device).manual_seed(seeded.initial_seed())
            self.rng["cuda"] = on_gpu.get_state()

    def __call__(
        self, batches: Sequence[FeatureBatch], learning_rate: float, where: str
    ) -> StepResult:
        """Makes one step; ``where`` is the position in the run, for errors."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._model.train()
        self._optimiser.zero_grad()
        losses, terms = [], []
        with self._own_randomness():
            for index, batch in enumerate(batches):
                last = index == len(batches) - 1
                waiting = (
                    contextlib.nullcontext() if last else self._accelerator.no_sync(self._model)
                )
                with waiting:
                    loss, parts = self._backward(batch, len(batches), where)
                losses.append(loss)
                terms.append(parts)
        norm = self._update(batches, where)
        mean = {name: sum(one[name] for one in terms) / len(terms) for name in terms[0]}
        return StepResult(sum(losses) / len(losses), mean, norm)

    def _backward(
        self, batch: FeatureBatch, count: int, where: str
    ) -> tuple[float, dict[str, float]]:
        estimate: DepthEstimate = self._model(batch.plain_runs, self._size)
        truth = (batch.target_B1HW, batch.valid_B1HW)
        result = self._loss(estimate, *truth, batch.scale_share_B, batch.weight_B1HW)
        loss = float(result.total.detach())
        # The loss is pooled, so every process takes the same branch.
        if not math.isfinite(loss):
            odd_B = (~torch.isfinite(estimate.depth)).flatten(1).any(dim=1)
            self._stop(f"{where}: the loss is {loss}", [batch], odd_B)
        self._accelerator.backward(result.total / count)
        return loss, {name: float(value) for name, value in result.terms.items()}

    def _update(self, batches: Sequence[FeatureBatch], where: str) -> float:
        total = self._accelerator.clip_grad_norm_(self._model.parameters(), self._clip)
        norm = float("nan") if total is None else float(torch.as_tensor(total).detach())
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped > (OVERFLOWS if self._may_overflow else 0):
            self._stop(f"{where}: the gradient's norm is {norm}", batches)
        self._optimiser.step()
        return norm

    def _stop(
        self, what: str, batches: Sequence[FeatureBatch], odd_B: Tensor | None = None
    ) -> None:
        """Raises an error that names the samples of all processes' batches."""
        names = [name for batch in batches for name in batch.names]
        odd = [] if odd_B is None else [names[i] for i in odd_B.nonzero().flatten().tolist()]
        names, odd = gather_object(names), gather_object(odd)
        first = f"; not finite for {', '.join(odd)}" if odd else ""
        raise TrainingError(
            f"{what}{first}. The batch: {', '.join(names)}. Look at these files, lower "
            "optimiser.lr, or train in float32 (precision: no), then continue with --resume"
        )

    @contextlib.contextmanager
    def _own_randomness(self) -> Any:
        """Inside, torch draws from this stepper's random stream, and nothing else does."""
        devices = [self._accelerator.device] if "cuda" in self.rng else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.rng["cpu"])
            if "cuda" in self.rng:
                torch.cuda.set_rng_state(self.rng["cuda"], self._accelerator.device)
            yield
            self.rng["cpu"] = torch.get_rng_state()
            if "cuda" in self.rng:
                self.rng["cuda"] = torch.cuda.get_rng_state(self._accelerator.device)


def learning_rate(step: int, total: int, *, peak: float, final: float, warmup: float) -> float:
    """Learning rate of one optimiser step; a pure function, so a resumed run needs no state.

    Returns:
        ``peak * (step + 1) / w`` in the ``w = ceil(warmup * total)`` warm-up steps, then half a
        cosine from ``peak`` to ``final``.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = min((step - rising) / max(total - rising - 1, 1), 1.0)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
