"""What an audit measures: a host with its tower, its input and the passes that depth is added to.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.arguments import check_type, parse_count, parse_size
from clipdepth_plugin.config import Preset
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.baselines import (
    Baseline,
    has_prefill,
    make_pixels,
    prefill_baseline,
    tower_baseline,
)

ScopeChoice = Literal["auto", "tower", "prefill"]
"""``auto``: the tower, and the prefill where the host has a language model."""


@dataclass(frozen=True)
class Subject:
    """A host, its pixels as the tower takes them, and what of it is measured.

    ``baselines``: passes that depth is added to; the first is the tower's.
    """

    label: str
    model: nn.Module
    tower: Tower
    pixels_B3HW: Tensor
    baselines: Sequence[Baseline]


def make_subject(
    model: nn.Module,
    *,
    label: str = "",
    tower: str | None = None,
    scope: ScopeChoice = "auto",
    batch: int = 1,
    size: tuple[int, int] | None = None,
    text_tokens: int = 32,
) -> Subject:
    """A host with random pixels for its tower, and its baselines.

    Args:
        model: The host, in eval mode, on its device and in its dtype.
        label: Its name in the report; "" takes its class.
        tower: Which tower, where it has several.
        scope: What depth is added to.
        batch: Pictures in a pass.
        size: (H, W); None takes the tower's own.
        text_tokens: Of a prefill's prompt, beside the picture's.

    Raises:
        BenchError: A pass can't be run; says why and what to do.
        TowerNotFoundError: No tower, or several and no choice.
    """
    batch, text_tokens = parse_count(batch, "batch"), parse_count(text_tokens, "text_tokens")
    size = None if size is None else parse_size(size, "size")
    found = choose_tower(model, tower)
    pixels_B3HW = make_pixels(found, batch, size)
    baselines = [tower_baseline(found, pixels_B3HW)]
    if scope == "prefill" or (scope == "auto" and has_prefill(model)):
        baselines.append(prefill_baseline(model, pixels_B3HW, text_tokens))
    return Subject(label or type(model).__name__, model, found, pixels_B3HW, baselines)


def random_heads(subject: Subject, presets: Iterable[Preset]) -> dict[str, DepthHead]:
    """Preset -> a head with random weights that fits the host, on its device and in its dtype."""
    check_type(subject, Subject, "subject", BenchError)
    heads: dict[str, DepthHead] = {}
    with torch.random.fork_rng(devices=[]):
        for preset in presets:
            torch.manual_seed(0)
            head = DepthHead.for_host(subject.model, preset, tower=subject.tower.path or None)
            heads[preset] = head.to(subject.pixels_B3HW).eval()
    return heads
