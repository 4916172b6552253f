"""audit(): what depth costs a host, measured in one interleaved run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.environment import Environment
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.bases import Base
from clipdepth_plugin.latency.extents import Extent, measure_extents, memory_noise
from clipdepth_plugin.latency.flops import count_parameters, parameter_mib
from clipdepth_plugin.latency.intervals import (
    Comparison,
    Interval,
    Quantiles,
    Values,
    compare,
    median_interval,
)
from clipdepth_plugin.latency.other_work import with_other_work
from clipdepth_plugin.latency.plan import Entry, plan
from clipdepth_plugin.latency.rounds import Samples, Variant, nothing, run_rounds, warm_up
from clipdepth_plugin.latency.schema import (
    Added,
    Audit,
    Figure,
    HeadSummary,
    HostSummary,
    Range,
    Settings,
)
from clipdepth_plugin.latency.timers import Timer, timer_for
from clipdepth_plugin.latency.verdict import make_verdict


@dataclass(frozen=True)
class Subject:
    """A host, and what of it is measured.

    Attributes:
        spec: As on the command line.
        label: For the report.
        model: The host.
        tower: Its tower.
        pixels_B3HW: (B, 3, H, W) as the tower takes them.
        bases: Passes that depth is added to; the first is the tower's.
        random_weights: Whether it was built from a config.
    """

    spec: str
    label: str
    model: nn.Module
    tower: Tower
    pixels_B3HW: Tensor
    bases: Sequence[Base]
    random_weights: bool = True


@dataclass(frozen=True)
class Method:
    """How it is measured.

    Attributes:
        rounds: Timed rounds.
        warmup: Untimed calls of each variant before.
        seed: Of the orders.
        timer: Times a call; None chooses by the device.
        advance: Called after each round.
    """

    rounds: int = 20
    warmup: int = 2
    seed: int = 0
    timer: Timer | None = None
    advance: Callable[[], object] = field(default=nothing)

    def run(
        self, variants: Sequence[Variant], device: torch.device
    ) -> tuple[Samples, float | None]:
        """The rounds, and the percentage of the processors' time that others took during them."""
        timer = self.timer or timer_for(device)
        warm_up(variants, self.warmup)  # what is compiled at first use is, by processes of ours
        return with_other_work(
            lambda: run_rounds(
                variants, self.rounds, timer, warmup=0, seed=self.seed, advance=self.advance
            )
        )


def audit(
    subject: Subject,
    heads: Mapping[str, DepthHead],
    environment: Environment,
    *,
    forms: Sequence[str] = ("eager",),
    forms_not_measured: Mapping[str, str] | None = None,
    separate: Mapping[str, Callable[[], object]] | None = None,
    method: Method | None = None,
) -> Audit:
    """Times a host alone, with hooks and with depth, the heads alone, and what is beside them.

    Args:
        subject: The host.
        heads: Name -> head that fits it, in eval mode, on its device.
        environment: Of the measurement.
        forms: Names in ``forms.FORMS``; taps alone are timed for the head with the most levels.
        forms_not_measured: Form -> why, for the report.
        separate: Name -> a pass of another network on the same picture.
        method: Rounds, warm-up, seed, timer.

    Raises:
        BenchError: Too few rounds.
        HeadMismatchError: A head does not fit.
    """
    method = method or Method()
    device = subject.pixels_B3HW.device
    path = subject.tower.path or None
    with (
        torch.no_grad(),
        plan(
            subject.model, path, subject.pixels_B3HW, subject.bases, heads, forms, separate or {}
        ) as entries,
    ):
        times, others = method.run([entry.variant for entry in entries], device)
        gc.collect()  # what the rounds left behind is not to be found by the calls that follow
        extents = measure_extents(entries, device)
    figures = tuple(_figure(entry, times, extents, subject.bases) for entry in entries)
    height, width = subject.pixels_B3HW.shape[-2:]
    report = Audit(
        environment=environment,
        host=_summary(subject),
        settings=Settings(
            batch=len(subject.pixels_B3HW),
            size=(height, width),
            rounds=method.rounds,
            warmup=method.warmup,
            seed=method.seed,
        ),
        heads={name: summarise_head(head) for name, head in heads.items()},
        forms_not_measured=dict(forms_not_measured or {}),
        noise_percent={base.scope: _noise(times, base) for base in subject.bases},
        memory_noise_mib=memory_noise(extents, subject.bases),
        others_percent=others,
        processors=os.cpu_count(),
        figures=figures,
    )
    return report.model_copy(update={"verdict": make_verdict(report)})


def _figure(
    entry: Entry, times: Samples, extents: Mapping[str, Extent], bases: Sequence[Base]
) -> Figure:
    name = entry.variant.name
    seconds, extent = times[name], extents[name]
    quantiles = Quantiles.of(seconds)
    against = [base for base in bases if entry.stands_alone or base.scope == entry.scope]
    compared = entry.what in ("hooks", "depth") or entry.stands_alone
    return Figure(
        name=name,
        scope=entry.scope,
        what=entry.what,
        head=entry.head,
        form=entry.form,
        p50_ms=1e3 * quantiles.p50,
        p95_ms=1e3 * quantiles.p95,
        p99_ms=1e3 * quantiles.p99,
        peak_mib=extent.peak_mib,
        gflops=extent.gflops,
        added=tuple(_added(entry, base, times, extents) for base in against) if compared else (),
        seconds=tuple(round(float(s), 7) for s in seconds),
    )


def _added(entry: Entry, base: Base, times: Samples, extents: Mapping[str, Extent]) -> Added:
    """Against a base: the difference, or all of the time of what stands alone."""
    seconds = times[entry.variant.name]
    alone, again = times[f"{base.scope} alone"], times[f"{base.scope} again"]
    extent = extents[entry.variant.name]
    if entry.stands_alone:
        whole, share = median_interval(seconds), median_interval(seconds / alone)
        found = Comparison(whole, share, told=whole.above_noise and share.above_noise)
        percent, mib = to_range(found.ratio, 100.0), extent.mib
    else:
        found = compare(seconds, alone, again)
        percent = to_range(found.ratio, 100.0, shift=-1.0)
        mib = extent.above(extents[f"{base.scope} alone"])
    return Added(
        base=base.scope,
        milliseconds=to_range(found.difference, 1e3),
        percent=percent,
        told=found.told,
        memory_mib=None if mib is None else median(mib),
    )


def _noise(times: Samples, base: Base) -> Range:
    ratio: Values = times[f"{base.scope} again"] / times[f"{base.scope} alone"]
    return to_range(median_interval(ratio), 100.0, shift=-1.0)


def to_range(interval: Interval, factor: float = 1.0, *, shift: float = 0.0) -> Range:
    """An interval for the report: shifted, then scaled."""
    ends = (interval.median, interval.low, interval.high)
    middle, low, high = (factor * (end + shift) for end in ends)
    return Range(median=middle, low=low, high=high)


def summarise_head(head: DepthHead) -> HeadSummary:
    """A head for the report."""
    return HeadSummary(
        preset=head.config.preset,
        levels=head.config.levels,
        parameters=count_parameters([head]),
        parameters_mib=parameter_mib(head),
    )


def _summary(subject: Subject) -> HostSummary:
    tower = subject.tower
    prompts = [base.tokens for base in subject.bases if base.tokens is not None]
    return HostSummary(
        spec=subject.spec,
        label=subject.label,
        model=type(subject.model).__name__,
        parameters=count_parameters([subject.model]),
        tower=tower.path,
        tower_parameters=count_parameters([tower.module]),
        family=tower.family,
        blocks=tower.depth,
        width=tower.width,
        patch=tower.patch_size,
        random_weights=subject.random_weights,
        prompt_tokens=prompts[0] if prompts else None,
    )
