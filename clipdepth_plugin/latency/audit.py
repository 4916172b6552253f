"""audit(): what depth costs a host, measured in one interleaved run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.exported import Exported
from clipdepth_plugin.latency.intervals import Comparison, check_rounds, compare, median_interval
from clipdepth_plugin.latency.report import make_verdict
from clipdepth_plugin.latency.resources import count_gflops, count_parameters, peak_mib
from clipdepth_plugin.latency.rounds import Samples, Timer, nothing, run_rounds, timer_for
from clipdepth_plugin.latency.schema import (
    Added,
    Audit,
    Figure,
    HeadSummary,
    HostSummary,
    Scope,
    Settings,
)
from clipdepth_plugin.latency.subject import Subject
from clipdepth_plugin.latency.variants import Entry, audit_entries

STANDS_ALONE: tuple[Scope, ...] = ("head", "separate")
"""Scopes whose cost is their whole time, not a difference from a baseline."""


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


@dataclass(frozen=True)
class _Measured:
    """Variant -> seconds (rounds,), peak MiB, 1e9 operations."""

    times: Samples
    peaks: Mapping[str, float | None]
    gflops: Mapping[str, float | None]


def audit(
    subject: Subject,
    heads: Mapping[str, DepthHead],
    *,
    forms: Sequence[str] = ("eager",),
    separate: Mapping[str, Callable[[], object]] | None = None,
    exported: Exported | None = None,
    method: Method | None = None,
    command: Sequence[str] = (),
) -> Audit:
    """Times a host alone, with hooks and with depth, the heads alone, and separate networks.

    Args:
        subject: The host: see ``make_subject`` and ``subject_from_call``.
        heads: Name -> head that fits it, in eval mode, on its device and in its dtype.
        forms: Names in ``forms.FORMS``; taps alone are timed for the head with the most levels.
        separate: Name -> a pass of another network on the same picture: see ``separate``.
        exported: Passes of an exported folder: see ``exported_passes``.
        method: Rounds, warm-up, seed, timer.
        command: The command line, for the report.

    Raises:
        BenchError: Too few rounds.
        HeadMismatchError: A head does not fit.
    """
    check_type(subject, Subject, "subject", BenchError)
    check_type(heads, Mapping, "heads", BenchError)
    method = method or Method()
    check_type(method, Method, "method", BenchError)
    check_rounds(method.rounds)
    pixels = subject.inputs.pixels
    environment = describe_environment(
        command, pixels.device, str(pixels.dtype).removeprefix("torch.")
    )
    exported = exported or Exported(())
    beside = separate or {}
    with torch.no_grad(), audit_entries(subject, heads, forms, beside, exported.entries) as entries:
        measured = _measure(entries, method, pixels.device)
    report = Audit(
        environment=environment,
        host=_summarise_host(subject),
        settings=Settings(
            batch=subject.batch,
            size=subject.views[0].pixel_size,
            rounds=method.rounds,
            warmup=method.warmup,
            seed=method.seed,
        ),
        heads={
            name: HeadSummary(
                preset=head.config.preset,
                levels=head.config.levels,
                parameters=count_parameters(head),
            )
            for name, head in heads.items()
        },
        noise_percent={
            one.scope: median_interval(
                measured.times[f"{one.scope} again"] / measured.times[f"{one.scope} alone"]
            ).scaled(100.0, shift=-1.0)
            for one in entries
            if one.what == "control"
        },
        figures=tuple(_figure(entry, measured, subject) for entry in entries),
    )
    return report.model_copy(
        update={"verdict": (*subject.notes, *exported.notes, *make_verdict(report))}
    )


def _measure(entries: Sequence[Entry], method: Method, device: torch.device) -> _Measured:
    variants = [entry.variant for entry in entries]
    times = run_rounds(
        variants,
        method.rounds,
        method.timer or timer_for(device),
        warmup=method.warmup,
        seed=method.seed,
        advance=method.advance,
    )
    gc.collect()  # garbage of the rounds would be freed in the calls that follow
    # onnxruntime keeps its memory: between calls nothing of it is seen.
    peaks = peak_mib([one.variant for one in entries if one.form != "onnx"], device)
    gflops: dict[str, float | None] = {}
    for entry in entries:
        # Compiled and fused forms do the same work where torch's counter does not see it.
        if entry.form in (None, "eager") and entry.what != "control":
            with entry.variant.prepared() as call:
                gflops[entry.variant.name] = count_gflops(call)
    return _Measured(times, peaks, gflops)


def _figure(entry: Entry, measured: _Measured, subject: Subject) -> Figure:
    name = entry.variant.name
    seconds = measured.times[name]
    p50, p95 = (float(q) for q in np.quantile(seconds, (0.50, 0.95)))
    against: list[Scope] = []
    if entry.scope in STANDS_ALONE:
        against = [one.scope for one in subject.baselines]
    elif entry.what in ("hooks", "depth"):
        against = [entry.scope]
    return Figure(
        name=name,
        scope=entry.scope,
        what=entry.what,
        head=entry.head,
        form=entry.form,
        p50_ms=1e3 * p50,
        p95_ms=1e3 * p95,
        peak_mib=measured.peaks.get(name),
        gflops=measured.gflops.get(name),
        added=tuple(_added(entry, scope, measured) for scope in against),
        seconds=tuple(round(float(s), 7) for s in seconds),
    )


def _added(entry: Entry, baseline: Scope, measured: _Measured) -> Added:
    """Against a baseline: the difference, or the whole time of what stands alone."""
    seconds, peak = measured.times[entry.variant.name], measured.peaks.get(entry.variant.name)
    alone, again = measured.times[f"{baseline} alone"], measured.times[f"{baseline} again"]
    below = measured.peaks.get(f"{baseline} alone")
    if entry.scope in STANDS_ALONE:
        whole, share = median_interval(seconds), median_interval(seconds / alone)
        found = Comparison(whole, share, whole.above_noise and share.above_noise)
        percent, memory = share.scaled(100.0), peak
    else:
        found = compare(seconds, alone, again)
        percent = found.ratio.scaled(100.0, shift=-1.0)
        memory = None if peak is None or below is None else peak - below
    return Added(
        baseline=baseline,
        milliseconds=found.difference.scaled(1e3),
        percent=percent,
        significant=found.significant,
        memory_mib=memory,
    )


def _summarise_host(subject: Subject) -> HostSummary:
    return HostSummary(
        label=subject.label,
        model=type(subject.model).__name__,
        parameters=count_parameters(subject.model),
        tower_parameters=count_parameters(subject.tower.module),
        prompt_tokens=subject.prompt_tokens,
    )
