"""The report of ``clipdepth bench kernels``, as JSON: ``clipdepth-kernels/1``.

An op or a head is a case. All forms and dtypes of a case are timed in the same interleaved rounds,
so that its ratios are paired; cases follow one another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.latency.schema import Range, Strict, read_report

Form = Literal["plain", "compiled", "fused", "graph"]
"""``plain``: the module in eager mode. ``compiled``: the same under torch.compile. ``fused``: the
inference form; its Triton kernels on a GPU, PyTorch on a CPU. ``graph``: that in a CUDA graph."""


class KernelFigure(Strict):
    """One form of a case in one dtype."""

    dtype: str
    form: Form
    why_not: str | None = None
    """Why there is no time; null where there is one."""
    failed: bool = False
    """It should have run here, and did not, or gave other numbers."""
    milliseconds: Range | None = None
    """From an idle device to an idle device."""
    queued_milliseconds: Range | None = None
    """Behind other work of the GPU, so that launching is hidden; null on a CPU."""
    speedup: Range | None = None
    """Plain eager's time over this one's, in this dtype, paired."""
    speedup_over_float32: Range | None = None
    """Plain eager float32's time over this one's, paired."""
    error: float | None = None
    """Norm of the difference from the plain float64 module's output, over that of its deviation
    from its mean."""
    first_call_seconds: float | None = None
    """Until it ran as it is timed, with all that is compiled, tuned or recorded before."""
    seconds: tuple[float, ...] = ()
    """One for each round, in the order of the rounds."""


class KernelCase(Strict):
    """An op at one place of a head, or a whole head."""

    name: str
    kind: Literal["head", "op"]
    place: str
    """Where it stands, and the shapes of its inputs."""
    batch: int
    gflops: float
    """1e9 operations of the plain form, a multiply-add being two."""
    floor_milliseconds: float | None
    """Of a whole head: what an H100 needs at least in bfloat16, the larger of operations over
    ``KernelSettings.flops`` and the weights' bytes over ``KernelSettings.bandwidth``. Computed,
    not measured."""
    other_work_percent: float | None
    """Share of all processors' time that others took during the rounds; null where it can't be
    read."""
    figures: tuple[KernelFigure, ...]

    def figure(self, form: Form, dtype: str) -> KernelFigure:
        """The figure of that form and dtype.

        Raises:
            KeyError: There is none.
        """
        for figure in self.figures:
            if (figure.form, figure.dtype) == (form, dtype):
                return figure
        raise KeyError((form, dtype))


class KernelSettings(Strict):
    """How it was measured."""

    grid: tuple[int, int]
    rounds: int
    warmup: int
    seed: int
    compile_mode: str
    compile_seconds: float
    """For torch.compile in all; what comes after they are spent is not compiled, and says so."""
    tf32: dict[str, bool]
    """Whether float32 convolutions and products of PyTorch may round their factors to TF32."""
    flops: float
    """Operations a second that the floors count with."""
    bandwidth: float
    """Bytes a second that the floors count with."""


class Verdict(Strict):
    """A target, and whether this run meets it."""

    target: str
    result: Literal["pass", "miss", "not judged"]
    measured: str
    """What was measured, or why it is not judged."""


class KernelReport(Strict):
    """One run."""

    format: Literal["clipdepth-kernels/1"] = "clipdepth-kernels/1"
    environment: Environment
    settings: KernelSettings
    cases: tuple[KernelCase, ...]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def failures(self) -> int:
        """Forms that should have run and did not, or gave other numbers."""
        return sum(figure.failed for case in self.cases for figure in case.figures)

    def case(self, name: str, batch: int = 1) -> KernelCase:
        """The case of that name and batch.

        Raises:
            KeyError: There is none.
        """
        for case in self.cases:
            if (case.name, case.batch) == (name, batch):
                return case
        raise KeyError((name, batch))


def load_kernel_report(path: Path) -> KernelReport:
    """Reads a report's JSON file.

    Raises:
        BenchError: It is not there, or not such a file.
    """
    return read_report(path, KernelReport, "clipdepth bench kernels")
