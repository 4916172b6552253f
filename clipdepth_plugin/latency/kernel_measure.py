"""Times every form of every case, and says what was computed and found beside the times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from clipdepth_plugin.config import HeadConfig, Preset
from clipdepth_plugin.environment import Environment
from clipdepth_plugin.kernels.launch import tf32_allowed
from clipdepth_plugin.latency.audit import to_range
from clipdepth_plugin.latency.flops import count_gflops
from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.kernel_cases import (
    Case,
    cast,
    head_case,
    random_features,
    random_head,
)
from clipdepth_plugin.latency.kernel_forms import (
    Made,
    Stopwatch,
    compile_mode,
    dtype_name,
    make_forms,
)
from clipdepth_plugin.latency.kernel_op import op_case
from clipdepth_plugin.latency.kernel_ops_compact import compact_ops
from clipdepth_plugin.latency.kernel_ops_dual_path import dual_path_ops
from clipdepth_plugin.latency.kernel_schema import (
    KernelCase,
    KernelFigure,
    KernelReport,
    KernelSettings,
)
from clipdepth_plugin.latency.kernel_verdict import judge
from clipdepth_plugin.latency.other_work import with_other_work
from clipdepth_plugin.latency.rounds import Samples, Variant, nothing, run_rounds
from clipdepth_plugin.latency.schema import Range
from clipdepth_plugin.latency.timers import CudaTimer, Timer, timer_for

WIDTH = 768
HEADS: tuple[Preset, ...] = ("spaceclip", "fast", "guided")
FLOPS, BANDWIDTH = 800e12, 3e12
"""Of an H100 in bfloat16: what large products reach of its 989e12, and its memory of 3.35e12."""
OPS = 9
"""Ops of ``clipdepth_plugin.ops``."""
BUSY = 0.01
"""Seconds of other work of the GPU in front of what is timed behind it."""


@dataclass(frozen=True)
class KernelPlan:
    """What is measured, and how.

    Attributes:
        heads: Name -> config; the ops are those of ``spaceclip`` and ``fast``.
        grid: (h, w) of the tokens.
        batches: Of the heads; ops have batch 1.
        dtypes: Of weights and inputs, in the order in which they are compiled.
        rounds: Timed rounds of each case.
        warmup: Untimed calls of each form before.
        seed: Of the orders.
        compile_seconds: For torch.compile in all.
        timer: Times a call; None chooses by the device.
    """

    heads: Mapping[str, HeadConfig]
    grid: tuple[int, int] = (14, 14)
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    rounds: int = 20
    warmup: int = 3
    seed: int = 0
    compile_seconds: float = 150.0
    timer: Timer | None = field(default=None, repr=False)


def plan_for(device: torch.device) -> KernelPlan:
    """The published head and ours on a ViT-B/16 at 224; under 8 minutes on an H100."""
    heads: dict[str, HeadConfig] = {
        preset: HeadConfig(width=WIDTH, preset=preset) for preset in HEADS
    }
    if device.type == "cuda":
        return KernelPlan(heads, batches=(1, 16), rounds=50, compile_seconds=200.0)
    return KernelPlan(heads, rounds=40)  # a processor's times spread more


def make_cases(plan: KernelPlan, device: torch.device) -> list[Case]:
    """Heads at the first batch, then ops, then heads at the other batches.

    That is their order of importance to what torch.compile's seconds are given to.
    """
    heads = {name: random_head(config, plan.grid).to(device) for name, config in plan.heads.items()}

    def at(batch: int) -> list[Case]:
        return [head_case(name, head, plan.grid, batch, device) for name, head in heads.items()]

    cases = at(plan.batches[0])
    grouped = plan.heads["fast"].model_copy(update={"norm": "group"})  # has all compact ops
    with torch.no_grad():
        for head, ops in (
            (heads["spaceclip"], dual_path_ops),
            (random_head(grouped, plan.grid).to(device), compact_ops),
        ):
            features = cast(random_features(head.config, plan.grid, 1), torch.float32, device)
            cases += [op_case(op, head.decoder, device) for op in ops(head, features)]
    return cases + [case for batch in plan.batches[1:] for case in at(batch)]


def measure_kernels(
    plan: KernelPlan,
    device: torch.device,
    environment: Environment,
    *,
    advance: Callable[[], object] = nothing,
) -> KernelReport:
    """Measures every case of the plan.

    Args:
        plan: What is measured.
        device: Where.
        environment: Of the measurement.
        advance: Called after each case, for a progress bar.
    """
    compiling, measured = Stopwatch(plan.compile_seconds), []
    for case in make_cases(plan, device):
        measured.append(_measure(case, plan, device, compiling))
        advance()
    report = KernelReport(
        environment=environment,
        settings=_settings(plan, device),
        cases=tuple(measured),
    )
    return report.model_copy(update={"verdicts": judge(report)})


def count_cases(plan: KernelPlan) -> int:
    """For a progress bar."""
    return OPS + len(plan.heads) * len(plan.batches)


def _measure(
    case: Case, plan: KernelPlan, device: torch.device, compiling: Stopwatch
) -> KernelCase:
    with torch.no_grad(), _compiler_reset():
        gflops = count_gflops(case.plain(torch.float32))
        forms = make_forms(case, plan.dtypes, device, compiling)
        (times, queued), others = with_other_work(lambda: _time(forms, plan, device))
    return KernelCase(
        name=case.name,
        kind=case.kind,
        place=case.place,
        batch=case.batch,
        gflops=gflops,
        floor_milliseconds=_floor(case, gflops),
        other_work_percent=others,
        figures=tuple(_figure(made, times, queued) for made in forms),
    )


def _time(forms: Sequence[Made], plan: KernelPlan, device: torch.device) -> tuple[Samples, Samples]:
    """Seconds from an idle device, and behind other work (none on a CPU)."""
    variants = [Variant(made.name, made.call) for made in forms if made.call is not None]
    timer = plan.timer or timer_for(device)
    times = run_rounds(variants, plan.rounds, timer, warmup=plan.warmup, seed=plan.seed)
    if device.type != "cuda":
        return times, {}
    behind = CudaTimer(device, busy=BUSY)
    return times, run_rounds(variants, plan.rounds, behind, warmup=0, seed=plan.seed + 1)


@contextlib.contextmanager
def _compiler_reset() -> Iterator[None]:
    """What is compiled for a case goes with it: torch keeps only so many versions of one code."""
    try:
        yield
    finally:
        torch._dynamo.reset()


def _floor(case: Case, gflops: float) -> float | None:
    if case.parameters is None:
        return None
    return 1e3 * max(1e9 * gflops / FLOPS, 2 * case.parameters / BANDWIDTH)


def _figure(made: Made, times: Samples, queued: Samples) -> KernelFigure:
    seconds = times.get(made.name)
    found = KernelFigure(
        dtype=dtype_name(made.dtype),
        form=made.form,
        why_not=made.why_not,
        failed=made.failed,
        error=made.error,
        first_call_seconds=None if made.first_call is None else round(made.first_call, 3),
    )
    if seconds is None:
        return found

    def speedup_over(dtype: torch.dtype) -> Range | None:
        base = times.get(Made("plain", dtype).name)
        return None if base is None else to_range(median_interval(base / seconds))

    behind = queued.get(made.name)
    return found.model_copy(
        update={
            "milliseconds": to_range(median_interval(seconds), 1e3),
            "queued_milliseconds": (
                None if behind is None else to_range(median_interval(behind), 1e3)
            ),
            "speedup": speedup_over(made.dtype),
            "speedup_over_float32": speedup_over(torch.float32),
            "seconds": tuple(round(float(s), 8) for s in seconds),
        }
    )


def _settings(plan: KernelPlan, device: torch.device) -> KernelSettings:
    return KernelSettings(
        grid=plan.grid,
        rounds=plan.rounds,
        warmup=plan.warmup,
        seed=plan.seed,
        compile_mode=compile_mode(device),
        compile_seconds=plan.compile_seconds,
        tf32={
            "convolutions": tf32_allowed("convolution"),
            "products": tf32_allowed("matmul"),
        },
        flops=FLOPS,
        bandwidth=BANDWIDTH,
    )
