"""What an audit measures: a host, its tower's input and the passes that depth is added to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.arguments import check_type, parse_count, parse_size
from clipdepth_plugin.config import Preset
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.features import Views
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.baselines import (
    Baseline,
    has_prefill,
    prefill_baseline,
    tower_baseline,
)
from clipdepth_plugin.latency.inputs import (
    TowerInputs,
    failures_as_errors,
    input_size,
    random_inputs,
    seen_inputs,
    views_of,
)
from clipdepth_plugin.latency.processed import processed_inputs
from clipdepth_plugin.latency.scopes import ScopeChoice
from clipdepth_plugin.precision import imitates

TEXT_TOKENS = 32
"""Of a prompt, beside the picture's."""


@dataclass(frozen=True)
class Subject:
    """A host, what its tower is given, and what of it is measured.

    ``baselines``: passes that depth is added to; the first is the tower's. ``views``: what the
    tower sees in that. ``notes``: sentences on what is not measured as one might expect; they go
    into the verdict.
    """

    label: str
    model: nn.Module
    tower: Tower
    inputs: TowerInputs
    baselines: Sequence[Baseline]
    views: tuple[Views, ...]
    notes: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """Views in a pass of the tower."""
        return sum(views.count for views in self.views)

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
    processor: Any = None,
) -> Subject:
    """A host with random pictures for its tower, and its baselines.

    Args:
        model: The host, in eval mode, on its device and in its dtype.
        label: Its name in the report; "" takes its class.
        tower: Which tower, where it has several.
        scope: What depth is added to. ``auto`` measures the tower alone where no prompt can be
            made for the host, and notes it.
        batch: Pictures (or clips) in a pass.
        size: (H, W); None takes the tower's own.
        text_tokens: Of a prefill's prompt, beside the picture's.
        processor: The host's Hugging Face image processor, which makes the tower's inputs of
            pictures of that size; needed where the tower takes no plain (B, 3, H, W) pixels but
            packed patches, say.

    Raises:
        BenchError: A pass can't be run; says why and what to do.
        NoDepthError: It is not known how the tower lays out its tokens.
        TowerNotFoundError: No tower, or several and no choice.
    """
    batch, text_tokens = parse_count(batch, "batch"), parse_count(text_tokens, "text_tokens")
    size = None if size is None else parse_size(size, "size")
    found = choose_tower(model, tower)
    if processor is None:
        inputs = random_inputs(found, batch, size)
    else:
        inputs = processed_inputs(model, found, processor, batch, size)
    baselines, notes = [tower_baseline(found, inputs)], []
    if scope == "prefill" or (scope == "auto" and has_prefill(model)):
        try:
            if processor is not None:
                raise BenchError("prompts are made for (B, 3, H, W) pixels alone")
            baselines.append(prefill_baseline(model, inputs.pixels, text_tokens))
        except BenchError as error:
            if scope == "prefill":
                raise
            notes.append(f"Only the tower is measured, not the prefill: {error}.")
    views, (height, width) = views_of(model, found, inputs), input_size(found, size)
    if [(one.count, one.pixel_size) for one in views] != [(batch, (height, width))]:
        seen = [f"{one.count} of {one.pixel_size[0]} x {one.pixel_size[1]}" for one in views]
        notes.append(
            f"The views in a pass of the tower are {' and '.join(seen)} pixels (asked for: "
            f"{batch} of {height} x {width})."
        )
    return _subject(label, model, found, inputs, baselines, views, notes)


def subject_from_call(
    model: nn.Module,
    call: Callable[[], object],
    *,
    label: str = "",
    tower: str | None = None,
) -> Subject:
    """A host as a call of the user's own runs it: for hosts whose inputs nobody else can make.

    Args:
        model: The host, in eval mode, on its device and in its dtype.
        call: Runs the host on pictures, always the same ones. It is measured as ``whole``; what
            it gives the tower (in its first pass, where it makes several) as ``tower``.
        label: As ``make_subject``.
        tower: As ``make_subject``.

    Raises:
        BenchError: The call fails, or does not run the tower.
        NoDepthError: It is not known how the tower lays out its tokens.
        TowerNotFoundError: No tower, or several and no choice.
    """
    if not callable(call):
        raise BenchError(f"call is {type(call).__name__}, expected a function without arguments")
    found = choose_tower(model, tower)
    with failures_as_errors("the call fails", "give one that runs the host on a picture"):
        inputs, passes = seen_inputs(found, call)
    notes = []
    if passes > 1:
        notes.append(f"The call runs the tower {passes} times; its first pass is measured alone.")
    baselines = [tower_baseline(found, inputs), Baseline("whole", call)]
    views = views_of(model, found, inputs)
    return _subject(label, model, found, inputs, baselines, views, notes)


def _subject(
    label: str,
    model: nn.Module,
    tower: Tower,
    inputs: TowerInputs,
    baselines: Sequence[Baseline],
    views: tuple[Views, ...],
    notes: Sequence[str],
) -> Subject:
    dtype = inputs.pixels.dtype
    if imitates(dtype, inputs.pixels.device):
        emulated = (
            f"This processor has no {str(dtype).removeprefix('torch.')} instructions and emulates "
            "them, several times slower than float32: these times say nothing about processors "
            "that have them."
        )
        notes = [*notes, emulated]
    label = label or type(model).__name__
    return Subject(label, model, tower, inputs, baselines, views, tuple(notes))


def random_heads(subject: Subject, presets: Iterable[Preset]) -> dict[str, DepthHead]:
    """Preset -> a head with random weights that fits the host, on its device and in its dtype."""
    check_type(subject, Subject, "subject", BenchError)
    heads: dict[str, DepthHead] = {}
    with torch.random.fork_rng(devices=[]):
        for preset in presets:
            torch.manual_seed(0)
            head = DepthHead.for_host(subject.model, preset, tower=subject.tower.path or None)
            heads[preset] = head.to(subject.inputs.pixels).eval()
    return heads
