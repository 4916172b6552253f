"""What an audit measures: a host with its tower, its input and the passes that depth is added to.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
from clipdepth_plugin.latency.scopes import ScopeChoice
from clipdepth_plugin.precision import imitates

TEXT_TOKENS = 32
"""Of a prompt, beside the picture's."""


@dataclass(frozen=True)
class Subject:
    """A host, its pixels as the tower takes them, and what of it is measured.

    ``baselines``: passes that depth is added to; the first is the tower's. ``notes``: sentences on
    what is not measured as one might expect; they go into the verdict.
    """

    label: str
    model: nn.Module
    tower: Tower
    pixels_B3HW: Tensor
    baselines: Sequence[Baseline]
    notes: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int | None:
        """Of the prefill, where one is measured."""
        return max((one.tokens or 0 for one in self.baselines), default=0) or None


def make_subject(
    model: nn.Module,
    *,
    label: str = "",
    tower: str | None = None,
    scope: ScopeChoice = "auto",
    batch: int = 1,
    size: tuple[int, int] | None = None,
    text_tokens: int = TEXT_TOKENS,
) -> Subject:
    """A host with random pixels for its tower, and its baselines.

    Args:
        model: The host, in eval mode, on its device and in its dtype.
        label: Its name in the report; "" takes its class.
        tower: Which tower, where it has several.
        scope: What depth is added to. ``auto`` measures the tower alone where no prompt can be
            made for the host, and notes it.
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
    notes = []
    if scope == "prefill" or (scope == "auto" and has_prefill(model)):
        try:
            baselines.append(prefill_baseline(model, pixels_B3HW, text_tokens))
        except BenchError as error:
            if scope == "prefill":
                raise
            notes.append(f"Only the tower is measured, not the prefill: {error}.")
    if imitates(pixels_B3HW.dtype, pixels_B3HW.device):
        name = str(pixels_B3HW.dtype).removeprefix("torch.")
        notes.append(
            f"This processor has no {name} instructions and emulates them, several times slower "
            "than float32: these times say nothing about processors that have them."
        )
    label = label or type(model).__name__
    return Subject(label, model, found, pixels_B3HW, baselines, tuple(notes))


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
