"""A run of ``clipdepth bench kernels`` for people: verdicts, best forms, one table."""

from __future__ import annotations

from string import ascii_lowercase
from typing import TYPE_CHECKING

from clipdepth_plugin.latency.kernel_forms import FORMS
from clipdepth_plugin.latency.kernel_schema import KernelCase, KernelFigure, KernelReport
from clipdepth_plugin.latency.kernel_verdict import best_lines
from clipdepth_plugin.latency.report import describe, markdown_table

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("what", "dtype", *FORMS, "error")


def rows(report: KernelReport) -> list[tuple[str, ...]]:
    """The table's cells, a row for each dtype of each case; letters point at ``notes``."""
    letters = {why: letter for letter, why in notes(report).items()}
    found = []
    for case in report.cases:
        for dtype in dict.fromkeys(figure.dtype for figure in case.figures):
            figures = [case.figure(form, dtype) for form in FORMS]
            cells = [_cell(figure, letters) for figure in figures]
            found.append((_name(case), dtype, *cells, _errors(figures)))
    return found


def notes(report: KernelReport) -> dict[str, str]:
    """Letter -> why something was not measured."""
    reasons = dict.fromkeys(
        figure.why_not
        for case in report.cases
        for figure in case.figures
        if figure.why_not is not None
    )
    # a, b, ... z, aa, ab, ...
    names = [*ascii_lowercase, *(a + b for a in ascii_lowercase for b in ascii_lowercase)]
    return dict(zip(names, reasons, strict=False))


def note_lines(report: KernelReport) -> list[str]:
    """``a: not measured: ...``, one for each reason."""
    return [f"{letter}: not measured: {why}" for letter, why in notes(report).items()]


def verdict_lines(report: KernelReport) -> list[str]:
    """``PASS: ...``, one for each target."""
    return [f"{v.result.upper()}: {v.target} ({v.measured})" for v in report.verdicts]


def to_markdown(report: KernelReport) -> str:
    """The whole report as Markdown."""
    lines = [
        f"# Plain and fused heads on {report.environment.gpu or report.environment.cpu}",
        "",
        *(f"- {line}" for line in verdict_lines(report)),
        "",
        "The fastest form of each head:",
        "",
        *(f"- {line}" for line in best_lines(report)),
        "",
        *_method(report),
        "",
        *markdown_table(HEADER, rows(report)),
        "",
        *(f"- {line}" for line in note_lines(report)),
        "",
        "Places, operations and floors:",
        "",
        *(f"- {_place(case)}" for case in report.cases),
        "",
        f"{_other_work(report)}{describe(report.environment)}",
        "",
    ]
    return "\n".join(lines)


def make_table(report: KernelReport) -> Table:
    """The report for a terminal."""
    from rich import box
    from rich.table import Table

    seen = report.environment
    table = Table(
        title=f"{seen.gpu or seen.cpu}, {report.settings.rounds} rounds: ms, and times as fast as "
        "plain",
        title_justify="left",
        box=box.SIMPLE,
        caption="\n".join(note_lines(report)),
        caption_justify="left",
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name in HEADER[:2] else "right")
    for cells in rows(report):
        table.add_row(*(cell.replace("; ", "\n") for cell in cells))
    return table


def _method(report: KernelReport) -> list[str]:
    """What was timed and how, for who reads the file alone."""
    settings = report.settings
    fused = "the inference form, on a CPU in PyTorch (no Triton kernel runs here)"
    graph = ""
    if report.environment.gpu is not None:
        fused = "the inference form with its Triton kernels"
        graph = (
            "`graph` is that in a CUDA graph. Times are from an idle GPU to an idle GPU, launches "
            "included; `queued` is what the GPU needs behind other work, where launching is "
            "hidden. "
        )
    method = (
        f"{settings.rounds} interleaved rounds of each case after {settings.warmup} warm-up calls "
        "of each form; medians with their bootstrap 95% interval. All forms and dtypes of a case "
        "share its rounds, and ratios are paired: `x1.2` is 1.2 times as fast as `plain` in the "
        "same dtype. `plain` is the module in eager mode, `compiled` the same under torch.compile "
        f"(mode {settings.compile_mode}), `fused` is {fused}. {graph}`error` is that of plain and "
        "fused against the plain module in float64; a fused form that is farther off than it may "
        "be is not timed. Weights and features are random."
    )
    floors = (
        "A floor is computed, not measured: what an H100 needs at least in bfloat16, at "
        f"{settings.flops / 1e12:g} TFLOP/s and {settings.bandwidth / 1e12:g} TB/s. PyTorch's own "
        f"float32 on a GPU may use TF32: convolutions {settings.tf32['convolutions']}, products "
        f"{settings.tf32['products']}."
    )
    return [method, "", floors]


def _other_work(report: KernelReport) -> str:
    shares = [c.other_work_percent for c in report.cases if c.other_work_percent is not None]
    if not shares:
        return ""
    return f"Others took at most {max(shares):.1f}% of the processors' time during a case. "


def _place(case: KernelCase) -> str:
    floor = case.floor_milliseconds
    tail = "" if floor is None else f", floor {1e3 * floor:.3g} us"
    return f"{_name(case)}: {case.place}; {case.gflops:.3g} GFLOP{tail}"


def _name(case: KernelCase) -> str:
    return f"{case.name}, batch {case.batch}" if case.kind == "head" else case.name


def _cell(figure: KernelFigure, letters: dict[str, str]) -> str:
    """``1.83 [1.80, 1.86] ms; x1.2 [1.1, 1.3]; 0.4 [0.3, 0.5] ms queued``, or a note's letter."""
    if figure.why_not is not None:
        return f"FAILED ({letters[figure.why_not]})" if figure.failed else letters[figure.why_not]
    parts = [f"{figure.milliseconds} ms"]
    if figure.form != "plain" and figure.speedup is not None:
        parts.append(f"x{figure.speedup}")
    if figure.queued_milliseconds is not None:
        parts.append(f"{figure.queued_milliseconds} ms queued")
    return "; ".join(parts)


def _errors(figures: list[KernelFigure]) -> str:
    errors = {f.form: f.error for f in figures}
    told = [errors["plain"], errors["fused"]]
    return "; ".join("-" if error is None else f"{error:.1e}" for error in told)
