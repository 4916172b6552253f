"""Kernel reports as a GPU would give them, made up."""

from __future__ import annotations

from typing import Any

from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.latency import kernel_forms
from clipdepth_plugin.latency.kernel_schema import (
    Form,
    KernelCase,
    KernelFigure,
    KernelReport,
    KernelSettings,
)
from clipdepth_plugin.latency.schema import Range


def a_figure(form: Form, milliseconds: float, over: float = 1.0) -> KernelFigure:
    ms = Range(median=milliseconds, low=0.99 * milliseconds, high=1.01 * milliseconds)
    speedup = Range(median=over, low=0.99 * over, high=1.01 * over)
    return KernelFigure(
        dtype="bfloat16",
        form=form,
        milliseconds=ms,
        speedup=speedup,
        speedup_over_float32=speedup,
        seconds=(1e-3 * milliseconds,) * 8,
    )


def no_figure(form: Form, *, failed: bool) -> KernelFigure:
    return KernelFigure(dtype="bfloat16", form=form, why_not="a reason", failed=failed)


def a_gpu_report(*others: KernelFigure, gpu: str = "NVIDIA H100 80GB HBM3") -> KernelReport:
    """One that meets every target of a GPU, but for the published head's figures given."""
    usual = (
        a_figure("plain", 1.83), a_figure("compiled", 0.4, 4.6), a_figure("graph", 0.19, 9.6)
    )  # fmt: skip

    def complete(*given: KernelFigure) -> tuple[KernelFigure, ...]:
        forms = {form: no_figure(form, failed=False) for form in kernel_forms.FORMS}
        return tuple({**forms, **{figure.form: figure for figure in given}}.values())

    common: dict[str, Any] = {
        "kind": "head", "place": "", "gflops": 32.5, "other_work_percent": None
    }  # fmt: skip
    cpu = describe_circumstances(())
    return KernelReport(
        environment=cpu.model_copy(update={"gpu": gpu, "device": "cuda:0", "cuda": "13.0"}),
        settings=KernelSettings(
            grid=(14, 14), rounds=8, warmup=0, seed=0, compile_mode="max-autotune",
            compile_seconds=1.0, tf32={"convolutions": True, "products": False}, flops=800e12,
            bandwidth=3e12,
        ),
        cases=(
            KernelCase(name="spaceclip", batch=1, floor_milliseconds=0.041,
                       figures=complete(*usual, *others), **common),
            KernelCase(name="spaceclip", batch=16, floor_milliseconds=0.65,
                       figures=complete(a_figure("graph", 1.9)), **common),
            KernelCase(name="fast", batch=1, floor_milliseconds=0.002,
                       figures=complete(a_figure("graph", 0.05)), **common),
        ),
    )  # fmt: skip
