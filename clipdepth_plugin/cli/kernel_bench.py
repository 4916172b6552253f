"""What ``clipdepth bench kernels`` does, below its options."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from clipdepth_plugin.cli.console import bar, plain_console
from clipdepth_plugin.cli.device import find_device, make_folder
from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.latency.kernel_forms import dtype_name
from clipdepth_plugin.latency.kernel_measure import (
    KernelPlan,
    count_cases,
    measure_kernels,
    plan_for,
)
from clipdepth_plugin.latency.kernel_report import make_table, to_markdown, verdict_lines
from clipdepth_plugin.latency.kernel_schema import KernelReport
from clipdepth_plugin.latency.memory import keep_freed_memory


def run_kernel_bench(
    output: Path | None,
    *,
    device: str,
    as_json: bool,
    command: Sequence[str],
    threads: int | None = None,
    plan: KernelPlan | None = None,
) -> KernelReport:
    """Measures, prints on stdout, writes ``fused_cpu`` or ``fused_cuda`` ``.json`` and ``.md``.

    Args:
        output: Folder for the files; None: none.
        device: As ``--device`` names it.
        as_json: JSON, and nothing else, on stdout.
        command: The command line.
        threads: torch's; None: its own choice.
        plan: What is measured; None: what ``plan_for`` says.

    Raises:
        ValueError: There is no such device, or a file can't be written.
    """
    place = find_device(device)
    if output is not None:
        make_folder(output)
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
    plan = plan or plan_for(place)
    # Before the measurement, as it makes load of its own.
    environment = describe_circumstances(
        command, place, ",".join(dtype_name(dtype) for dtype in plan.dtypes)
    )
    # Kernels are launched on the current device.
    current = torch.cuda.device(place) if place.type == "cuda" else contextlib.nullcontext()
    with current, bar(plain_console(stderr=True), "cases", count_cases(plan)) as advance:
        report = measure_kernels(plan, place, environment, advance=lambda: advance(1))
    text = report.model_dump_json(indent=1) + "\n"
    if output is not None:
        _write(output / f"fused_{place.type}.json", text)
        _write(output / f"fused_{place.type}.md", to_markdown(report))
    if as_json:
        sys.stdout.write(text)
    else:
        _show(report)
    return report


def _show(report: KernelReport) -> None:
    shown = plain_console()
    shown.print(make_table(report))
    for line in verdict_lines(report):
        shown.print(line, highlight=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
