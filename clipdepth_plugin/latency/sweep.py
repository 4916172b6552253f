"""How time grows: over the batch, the picture's size, the number of tapped levels.

All values of a sweep run interleaved in the same rounds, so that they may be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.audit import Method, to_range
from clipdepth_plugin.latency.bases import make_pixels, tower_base
from clipdepth_plugin.latency.intervals import compare, median_interval
from clipdepth_plugin.latency.plan import Entry, switched, with_depth
from clipdepth_plugin.latency.rounds import Samples, Variant
from clipdepth_plugin.latency.scaling import fit_exponent
from clipdepth_plugin.latency.schema import Exponent, Sweep, SweepPoint

Over = Literal["batch", "pixels", "levels"]
LEVELS_HEAD = "fast, semantic levels only"
_TOWER = "tower"


def parse_sweep(text: str) -> tuple[Over, tuple[int, ...]]:
    """``batch=1,2,4`` -> ("batch", (1, 2, 4)).

    Raises:
        BenchError: Another quantity, fewer than two values, or one that is no positive number.
    """
    name, _, listed = text.partition("=")
    words = [word.strip() for word in listed.split(",") if word.strip()]
    values = tuple(sorted({int(word) for word in words if word.isdigit() and int(word) > 0}))
    if name not in get_args(Over) or len(values) != len(words) or len(values) < 2:
        raise BenchError(
            f"sweep {text!r}: say batch=1,2,4 or pixels=224,336,448 or levels=1,2,4,8: two "
            "different positive numbers or more"
        )
    return cast("Over", name), values


def run_sweep(
    model: nn.Module,
    tower: Tower,
    heads: Mapping[str, DepthHead],
    over: Over,
    values: Sequence[int],
    *,
    batch: int = 1,
    method: Method | None = None,
) -> Sweep:
    """Times the tower alone and with depth (eager) for every value.

    Args:
        model: The host.
        tower: Its tower.
        heads: Name -> head. ``levels`` makes heads of its own instead.
        over: What varies.
        values: Its values, ascending.
        batch: B, where it is not what varies.
        method: As for ``audit``.

    Raises:
        BenchError: The tower can't take a size, or has fewer levels than asked for.
    """
    method = method or Method()
    with sweep_passes(model, tower, heads, over, values, batch) as variants:
        device = next(tower.patch_embed.parameters()).device
        times, others = method.run(variants, device)
    names = [LEVELS_HEAD] if over == "levels" else list(heads)
    pictures = {value: value if over == "batch" else batch for value in values}
    points = tuple(_point(times, value, names, pictures[value]) for value in values)
    found, reasons = _exponents(times, over, points, names)
    return Sweep(
        over=over,
        rounds=method.rounds,
        points=points,
        exponents=tuple(found),
        exponents_not_fitted=reasons,
        others_percent=others,
    )


@contextlib.contextmanager
def sweep_passes(
    model: nn.Module,
    tower: Tower,
    heads: Mapping[str, DepthHead],
    over: Over,
    values: Sequence[int],
    batch: int,
) -> Iterator[list[Variant]]:
    """The passes of a sweep: the tower alone, again and with each head for every value.

    Arguments as in ``run_sweep``. The hooks are gone in the end.

    Raises:
        BenchError: The tower can't take a size, or has fewer levels than asked for.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        variants: list[Variant] = []
        for value in values:
            size = (value, value) if over == "pixels" else None
            pixels_B3HW = make_pixels(tower, value if over == "batch" else batch, size)
            base = tower_base(tower, pixels_B3HW)
            here = {LEVELS_HEAD: level_head(model, tower, value)} if over == "levels" else heads
            entries = [
                Entry(Variant(_TOWER, base.call), "tower", "alone"),
                Entry(Variant("again", base.call), "tower", "control"),
            ]
            for name, head in here.items():
                switch = stack.enter_context(switched(model, head, "eager", tower.path or None))
                entries.append(with_depth(base, switch, name, "eager"))
            variants += [_renamed(entry, value) for entry in entries]
        yield variants


def level_head(model: nn.Module, tower: Tower, count: int) -> DepthHead:
    """A ``fast`` head that taps ``count`` levels, evenly spaced up to the last.

    Raises:
        BenchError: The tower has fewer blocks.
    """
    if count > tower.depth:
        raise BenchError(f"{count} levels: the tower {tower} has {tower.depth} blocks")
    levels = tuple(round((i + 1) * tower.depth / count) for i in reversed(range(count)))
    weight = next(tower.patch_embed.parameters())
    head = DepthHead.for_host(
        model, "fast", tower=tower.path or None, semantic_levels=levels, structural=False
    )
    return head.to(weight).eval()


def _key(value: int, name: str) -> str:
    return f"{value}: {name}"


def _renamed(entry: Entry, value: int) -> Variant:
    """Names are to differ between the values."""
    old = entry.variant
    name = old.name if entry.head is None else entry.head
    return Variant(_key(value, name), old.call, old.before, old.after)


def _point(times: Samples, value: int, heads: Sequence[str], pictures: int) -> SweepPoint:
    alone, again = times[_key(value, _TOWER)], times[_key(value, "again")]
    beside = {name: times[_key(value, name)] for name in heads}
    added = {name: compare(seconds, alone, again) for name, seconds in beside.items()}
    return SweepPoint(
        value=value,
        tower_ms=to_range(median_interval(alone), 1e3),
        images_per_second=pictures / float(np.median(alone)),
        added_ms={name: to_range(one.difference, 1e3) for name, one in added.items()},
        added_told={name: one.told for name, one in added.items()},
        images_per_second_with={
            name: pictures / float(np.median(seconds)) for name, seconds in beside.items()
        },
    )


def _exponents(
    times: Samples, over: Over, points: Sequence[SweepPoint], heads: Sequence[str]
) -> tuple[list[Exponent], dict[str, str]]:
    """Of the tower, and of what each head adds where that can be told at every value; else why."""
    values = np.array([float(point.value) for point in points])
    quantity = values**2 if over == "pixels" else values
    alone_VR = np.stack([times[_key(point.value, _TOWER)] for point in points])
    found: list[Exponent] = []
    reasons: dict[str, str] = {}
    if over != "levels":  # the tower itself does not change with what is tapped
        found.append(Exponent(of=_TOWER, exponent=to_range(fit_exponent(quantity, alone_VR))))
    for name in heads:
        lost = [p.value for p in points if not p.added_told[name]]
        saved = [p.value for p in points if p.added_ms[name].median <= 0]
        if lost or saved:
            why = "lost in noise" if lost else "not above zero"
            reasons[name] = f"what it adds is {why} at {', '.join(map(str, lost or saved))}"
            continue
        beside_VR = np.stack([times[_key(point.value, name)] for point in points])
        slope = fit_exponent(quantity, beside_VR - alone_VR)
        found.append(Exponent(of=name, exponent=to_range(slope)))
    return found, reasons
