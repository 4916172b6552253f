"""What ``clipdepth bench`` does, below its options."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.cli.bench_options import DTYPES, BenchOptions, check_options
from clipdepth_plugin.cli.console import bar, loading, plain_console
from clipdepth_plugin.cli.device import find_device, make_folder
from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.audit import Method, Subject, audit
from clipdepth_plugin.latency.bases import (
    Base,
    has_prefill,
    make_pixels,
    prefill_base,
    tower_base,
)
from clipdepth_plugin.latency.forms import choose_forms
from clipdepth_plugin.latency.hosts import PREFIX, load_bench_host
from clipdepth_plugin.latency.memory import keep_freed_memory
from clipdepth_plugin.latency.plot import write_plot
from clipdepth_plugin.latency.report import make_table, sweep_notes, to_markdown
from clipdepth_plugin.latency.rounds import warm_up
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.separate import (
    SEPARATE,
    depth_anything_v2_small,
    separate_call,
)
from clipdepth_plugin.latency.sweep import parse_sweep, run_sweep, sweep_passes
from clipdepth_plugin.weights.shipped import load_head

JSON_FILE, MARKDOWN_FILE = "added_latency.json", "added_latency.md"
PLOT_FILES = ("added_latency.png", "added_latency.svg")


def run_bench(options: BenchOptions, command: Sequence[str], console: Console) -> Audit:
    """Measures, prints on stdout, writes the files; what is measured is kept if the rest fails.

    Raises:
        ValueError: The host, a head or an option is wrong, or a file can't be written.
    """
    if options.output is not None:
        make_folder(options.output)
    shown = _Shown(options)
    try:
        return measure(options, command, console, shown.keep)
    finally:
        shown.end()


def measure(
    options: BenchOptions,
    command: Sequence[str],
    console: Console,
    keep: Callable[[Audit], object] = lambda _: None,
) -> Audit:
    """Measures, with progress bars on ``console``. The process keeps its freed memory from then on.

    Args:
        options: What is measured, and how.
        command: For the report.
        console: For the bars.
        keep: Called with the report when the audit is done, and again after each sweep.

    Raises:
        ValueError: The host, a head or an option is wrong: before anything is timed.
    """
    sweeps = [parse_sweep(text) for text in options.sweeps]
    device = find_device(options.device)
    forms, without = choose_forms(options.forms, device)
    check_options(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    with console.status(loading(options.host)):
        subject = load_subject(options, device)
        heads = load_heads(options, subject)
        separate = _separate(options, subject)
        model, tower = subject.model, subject.tower
        for over, values in sweeps:
            with sweep_passes(model, tower, heads, over, values, options.batch) as passes:
                warm_up(passes, 1)
    # Before the measurement, as it makes load of its own.
    environment = describe_circumstances(command, device, options.dtype)
    with _method(options, console, "rounds", options.rounds) as method:
        report = audit(
            subject,
            heads,
            environment,
            forms=forms,
            forms_not_measured=without,
            separate=separate,
            method=method,
        )
    keep(report)
    for over, values in sweeps:
        with _method(options, console, f"over {over}", options.sweep_rounds) as method:
            sweep = run_sweep(model, tower, heads, over, values, batch=options.batch, method=method)
        report = report.model_copy(update={"sweeps": (*report.sweeps, sweep)})
        keep(report)
    return report


@contextlib.contextmanager
def _method(options: BenchOptions, console: Console, what: str, rounds: int) -> Iterator[Method]:
    """So many rounds, with a progress bar."""
    with bar(console, what, rounds) as advance:
        yield Method(rounds, options.warmup, options.seed, advance=lambda: advance(1))


def load_subject(options: BenchOptions, device: torch.device) -> Subject:
    """The host on its device, with the passes that depth is added to."""
    label, model = load_bench_host(options.host, random_weights=options.random_weights)
    model = model.to(device, DTYPES[options.dtype])
    tower = choose_tower(model, options.tower)
    size = None if options.size is None else (options.size, options.size)
    pixels_B3HW = make_pixels(tower, options.batch, size)
    bases: list[Base] = [tower_base(tower, pixels_B3HW)]
    if options.scope == "prefill" or (options.scope == "auto" and has_prefill(model)):
        bases.append(prefill_base(model, pixels_B3HW, options.text_tokens))
    return Subject(
        spec=options.host,
        label=label,
        model=model,
        tower=tower,
        pixels_B3HW=pixels_B3HW,
        bases=bases,
        random_weights=options.random_weights or options.host.startswith(PREFIX),
    )


def load_heads(options: BenchOptions, subject: Subject) -> dict[str, DepthHead]:
    """Trained heads by ``--head``, random ones by ``--preset``; ``spaceclip`` and ``fast`` if none.

    Raises:
        HeadFileError: There is no such trained head.
    """
    presets = options.presets
    if not presets and not options.heads:
        presets = ("spaceclip", "fast")
    heads = {name: load_head(name) for name in options.heads}
    for preset in presets:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heads[preset] = _fitting(subject.model, subject.tower, preset)
    like = subject.pixels_B3HW
    return {name: head.to(like.device, like.dtype).eval() for name, head in heads.items()}


def _fitting(model: nn.Module, tower: Tower, preset: str) -> DepthHead:
    known = next(name for name in PRESETS if name == preset)
    return DepthHead.for_host(model, known, tower=tower.path or None)


def _separate(options: BenchOptions, subject: Subject) -> dict[str, Callable[[], object]]:
    """Passes of the separate network, for each size asked for."""
    if not options.separate:
        return {}
    like = subject.pixels_B3HW
    network = depth_anything_v2_small().to(like.device, like.dtype)
    return {
        f"{SEPARATE} at {size}": separate_call(network, options.batch, size, like)
        for size in options.separate
    }


@dataclass
class _Shown:
    """On stdout: the table and the verdict, or JSON in the end. Into the folder: all forms of it.

    Attributes:
        options: Which of them.
        report: The last that there was.
    """

    options: BenchOptions
    report: Audit | None = None

    def keep(self, report: Audit) -> None:
        """Writes the files; prints what is new since the last call."""
        before, self.report = self.report, report
        if self.options.output is not None:
            _write_files(self.options.output, report)
        if self.options.as_json:
            return
        shown = plain_console()
        if before is None:
            shown.print(make_table(report))
            lines = list(report.verdict)
        else:
            sweep = report.sweeps[-1]
            notes = sweep_notes(sweep, report.processors_seen)
            lines = [f"Over the {sweep.over}: {line}" for line in notes]
        for line in lines:
            shown.print(line, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """One JSON document, of what was measured until then."""
        if self.options.as_json and self.report is not None:
            sys.stdout.write(_json(self.report))


def _write_files(folder: Path, report: Audit) -> None:
    _write(folder / JSON_FILE, _json(report))
    _write(folder / MARKDOWN_FILE, to_markdown(report))
    for name in PLOT_FILES:
        write_plot(folder / name, report)


def _json(report: Audit) -> str:
    return report.model_dump_json(indent=1) + "\n"


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
