"""The moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Ema:
    """Exponential moving average of parameters and buffers, kept where the model is.

    Holds whatever the model holds in this process, so shards of a sharded model too. Integer
    buffers (batch counters) are copied.

    The average warms up: step t keeps (1 + t) / (10 + t) of it, at most ``decay``; otherwise short
    runs would end with a share of their random initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._average = {name: x.detach().clone() for name, x in _tensors(model)}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average after optimiser step ``step``, counted from 1."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, x in _tensors(self._model):
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(x, 1.0 - kept)
            else:
                average.copy_(x)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def restart(self) -> None:
        """The average becomes the model's weights as they are."""
        for name, x in _tensors(self._model):
            self._average[name].copy_(x)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, x in _tensors(self._model):
            kept = x.detach().clone()
            x.copy_(self._average[name])
            self._average[name].copy_(kept)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The average, by the model's own names."""
        return self._average


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # A forward without a backward leaves the outermost of sharded modules gathered.
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    yield from model.named_parameters()
    yield from model.named_buffers()
