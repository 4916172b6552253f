"""A clock that is advanced by passes of known cost, so that no test of a measurement waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from clipdepth_plugin.latency.audit import Method
from clipdepth_plugin.latency.rounds import wall_timer


@dataclass
class Clock:
    """Advanced by what runs; drifts, with relative ``noise``."""

    noise: float = 0.002
    drift: float = 0.01
    now: float = 0.0
    draws: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def spend(self, cost: float) -> None:
        uneven = 1 + self.noise * self.draws.standard_normal()
        self.now += cost * uneven * (1 + self.drift * self.now)

    def charge(self, module: nn.Module, cost: Callable[[Any], float]) -> None:
        """Makes every forward of ``module`` cost time, by its first argument or its pixels."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.spend(cost(args[0] if args else kwargs["pixel_values"]))

        module.register_forward_pre_hook(hook, with_kwargs=True)

    @property
    def method(self) -> Method:
        return Method(rounds=24, warmup=0, timer=wall_timer(now=lambda: self.now))
