"""Hosts to measure: any that ``load_host`` takes; ``config:NAME`` needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.loading.config import BUILT_IN

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BUILT_IN", "PREFIX", "load_bench_host"]

PREFIX = "config:"


def load_bench_host(spec: str, *, random_weights: bool = False) -> tuple[str, nn.Module]:
    """A host to measure: its label in a report, and the model, float32 and in eval mode.

    Raises:
        HostError: As ``load_host``.
    """
    host = load_host(spec, random_weights=random_weights)
    return host.label, host.model
