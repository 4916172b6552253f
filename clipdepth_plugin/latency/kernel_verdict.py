"""The targets of the fused heads, and whether a run meets them.

A target is met where the worse end of the 95% interval meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.kernel_schema import (
    Form,
    KernelCase,
    KernelFigure,
    KernelReport,
    Verdict,
)
from clipdepth_plugin.latency.schema import Range

GPU = "H100"
PUBLISHED, FAST, BATCH = "spaceclip", "fast", 16
FLOOR_FACTOR = 3.0


class Missing(Exception):  # noqa: N818 (a reason, caught here)
    """There is no figure to judge by; says why."""

    def __init__(self, why: str, *, failed: bool = False) -> None:
        super().__init__(why)
        self.failed = failed


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        text: What is to be.
        on_gpu: Whether it is of a GPU; else of a CPU.
        judge: (met, what was measured).
    """

    text: str
    on_gpu: bool
    judge: Callable[[KernelReport], tuple[bool, str]]


def judge(report: KernelReport) -> tuple[Verdict, ...]:
    """Every target; one of another device is not judged."""
    return tuple(_verdict(target, report) for target in TARGETS)


def best_form(case: KernelCase, dtype: str) -> KernelFigure | None:
    """The fastest measured form, by its median; None where none was measured."""
    found = [f for f in case.figures if f.dtype == dtype and f.milliseconds is not None]
    return min(found, key=lambda f: f.milliseconds.median if f.milliseconds else 0, default=None)


def best_lines(report: KernelReport) -> list[str]:
    """For each head, batch and dtype the fastest form, with what it gives."""
    lines = []
    for case in report.cases:
        for dtype in dict.fromkeys(f.dtype for f in case.figures) if case.kind == "head" else ():
            best = best_form(case, dtype)
            if best is not None and best.milliseconds is not None:
                batch = "" if case.batch == 1 else f", batch {case.batch}"
                lines.append(
                    f"`{case.name}`{batch}, {dtype}: {best.form}, {best.milliseconds} ms; "
                    f"{_speedups(best)}."
                )
    return lines


def _speedups(figure: KernelFigure) -> str:
    over = [f"{figure.speedup} times as fast as plain {figure.dtype}"]
    if figure.dtype != "float32":
        over.append(f"{figure.speedup_over_float32} times as fast as plain float32")
    return ", ".join(over)


def _verdict(target: Target, report: KernelReport) -> Verdict:
    gpu = report.environment.gpu
    if target.on_gpu != (gpu is not None):
        of = f"an {GPU}" if target.on_gpu else "a CPU"
        where = report.environment.device
        return Verdict(target=target.text, result="not judged", measured=f"of {of}, ran on {where}")
    try:
        met, measured = target.judge(report)
    except Missing as missing:
        return Verdict(
            target=target.text,
            result="miss" if missing.failed else "not judged",
            measured=str(missing),
        )
    if gpu is not None and GPU not in gpu:
        measured += f" (on {gpu}, and the target is of an {GPU})"
    return Verdict(target=target.text, result="pass" if met else "miss", measured=measured)


def _figure(report: KernelReport, name: str, form: Form, dtype: str, batch: int) -> KernelFigure:
    try:
        figure = report.case(name, batch).figure(form, dtype)
    except KeyError as error:
        raise Missing(f"{error.args[0]} was not measured") from error
    if figure.milliseconds is None:
        raise Missing(f"{name}, {form}, {dtype}: {figure.why_not}", failed=figure.failed)
    return figure


def _milliseconds(report: KernelReport, name: str, batch: int = 1) -> Range:
    found = _figure(report, name, "graph", "bfloat16", batch).milliseconds
    assert found is not None
    return found


def _at_most(name: str, limit: float) -> Callable[[KernelReport], tuple[bool, str]]:
    def judge(report: KernelReport) -> tuple[bool, str]:
        found = _milliseconds(report, name)
        return found.high <= limit, f"{found} ms"

    return judge


def _eighth(report: KernelReport) -> tuple[bool, str]:
    found = _figure(report, PUBLISHED, "graph", "bfloat16", 1).speedup
    assert found is not None
    return found.low >= 8, f"plain eager's time is {found} times"


def _under_compiled(report: KernelReport) -> tuple[bool, str]:
    graph = _figure(report, PUBLISHED, "graph", "bfloat16", 1)
    compiled = _figure(report, PUBLISHED, "compiled", "bfloat16", 1)
    ratio = median_interval(np.array(compiled.seconds) / np.array(graph.seconds))
    found = Range(median=ratio.median, low=ratio.low, high=ratio.high)
    return found.low > 1, f"torch.compile's time is {found} times"


def _near_floor(report: KernelReport) -> tuple[bool, str]:
    found = _milliseconds(report, PUBLISHED, BATCH)
    floor = report.case(PUBLISHED, BATCH).floor_milliseconds
    assert floor is not None
    return found.high <= FLOOR_FACTOR * floor, f"{found} ms over a floor of {floor:.3g} ms"


def _best(dtype: str, factor: float) -> Callable[[KernelReport], tuple[bool, str]]:
    def judge(report: KernelReport) -> tuple[bool, str]:
        _figure(report, PUBLISHED, "plain", "float32", 1)
        _figure(report, PUBLISHED, "fused", dtype, 1)
        best = best_form(report.case(PUBLISHED), dtype)
        assert best is not None
        assert best.speedup_over_float32 is not None
        return best.speedup_over_float32.low >= factor, f"{best.form}: {_speedups(best)}"

    return judge


_IN_GRAPH = "published head, bfloat16, batch 1, in a CUDA graph"
TARGETS = (
    Target(f"{_IN_GRAPH}: at most 0.20 ms", True, _at_most(PUBLISHED, 0.20)),
    Target(f"{_IN_GRAPH}: at most 1/8 of plain eager", True, _eighth),
    Target(f"{_IN_GRAPH}: under plain torch.compile", True, _under_compiled),
    Target(
        "`fast`, bfloat16, batch 1, in a CUDA graph: at most 0.06 ms", True, _at_most(FAST, 0.06)
    ),
    Target(
        f"published head, bfloat16, batch {BATCH}, in a CUDA graph: at most {FLOOR_FACTOR:g} times "
        "its floor",
        True,
        _near_floor,
    ),
    Target(
        "published head, float32, best form: at least 1.15 times as fast as plain float32",
        False,
        _best("float32", 1.15),
    ),
    Target(
        "published head, bfloat16, best form: at least 1.6 times as fast as plain float32",
        False,
        _best("bfloat16", 1.6),
    ),
)
