"""What ``clipdepth bench`` does, below its options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from rich.console import Console
from torch import nn

from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.circumstances import describe_circumstances
from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.consoles import loading, plain_console
from clipdepth_plugin.depth_files import write_atomically
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.evaluation.console import bar, find_device, make_folder
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
from clipdepth_plugin.latency.intervals import MIN_ROUNDS
from clipdepth_plugin.latency.memory import keep_freed_memory
from clipdepth_plugin.latency.plot import write_plot
from clipdepth_plugin.latency.report import make_table, to_markdown
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.separate import (
    SEPARATE,
    depth_anything_v2_small,
    separate_call,
)
from clipdepth_plugin.latency.sweep import parse_sweep, run_sweep
from clipdepth_plugin.shipped import load_head

JSON_FILE, MARKDOWN_FILE = "added_latency.json", "added_latency.md"
PLOT_FILES = ("added_latency.png", "added_latency.svg")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ScopeChoice = Literal["auto", "tower", "prefill"]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of the command, as its help describes them."""

    host: str
    heads: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    tower: str | None = None
    scope: ScopeChoice = "auto"
    batch: int = 1
    size: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 20
    warmup: int = 2
    seed: int = 0
    separate: tuple[int, ...] = (224, 518)
    sweeps: tuple[str, ...] = ("batch=1,2,4",)
    sweep_rounds: int = 10
    text_tokens: int = 32
    random_weights: bool = False
    output: Path | None = None
    as_json: bool = False


def run_bench(options: BenchOptions, command: Sequence[str], console: Console) -> Audit:
    """Measures, prints on stdout, writes the files.

    Raises:
        ValueError: The host, a head or an option is wrong, or a file can't be written.
    """
    if options.output is not None:
        make_folder(options.output)
    report = measure(options, command, console)
    _show(report, options)
    return report


def measure(options: BenchOptions, command: Sequence[str], console: Console) -> Audit:
    """Measures, with progress bars on ``console``. The process keeps its freed memory from then on.

    Raises:
        ValueError: The host, a head or an option is wrong.
    """
    sweeps = [parse_sweep(text) for text in options.sweeps]
    device = find_device(options.device)
    forms, without = choose_forms(options.forms, device)
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    with console.status(loading(options.host)):
        subject = load_subject(options, device)
        heads = load_heads(options, subject)
        separate = _separate(options, subject)
    # Before the measurement, as it makes load of its own.
    circumstances = describe_circumstances(command, device, options.dtype)
    with bar(console, "rounds", options.rounds) as advance:
        report = audit(
            subject,
            heads,
            circumstances,
            forms=forms,
            forms_not_measured=without,
            separate=separate,
            method=Method(options.rounds, options.warmup, options.seed, advance=lambda: advance(1)),
        )
    found = []
    for over, values in sweeps:
        with bar(console, f"over {over}", options.sweep_rounds) as advance:
            method = Method(
                options.sweep_rounds, options.warmup, options.seed, advance=lambda: advance(1)
            )
            model, tower = subject.model, subject.tower
            found.append(
                run_sweep(model, tower, heads, over, values, batch=options.batch, method=method)
            )
    return report.model_copy(update={"sweeps": tuple(found)})


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


def _check(options: BenchOptions) -> None:
    if options.dtype not in DTYPES:
        raise BenchError(f"dtype {options.dtype!r}: there are {', '.join(DTYPES)}")
    if options.scope not in get_args(ScopeChoice):
        raise BenchError(f"scope {options.scope!r}: there are {', '.join(get_args(ScopeChoice))}")
    unknown = [preset for preset in options.presets if preset not in PRESETS]
    if unknown:
        raise BenchError(f"preset {unknown[0]!r}: there are {', '.join(PRESETS)}")
    fewest = min(options.rounds, options.sweep_rounds if options.sweeps else options.rounds)
    if fewest < MIN_ROUNDS:
        raise BenchError(f"{fewest} rounds: a 95% interval of a median needs {MIN_ROUNDS} or more")
    if options.batch < 1:
        raise BenchError(f"batch {options.batch}: needs one picture or more")


def _show(report: Audit, options: BenchOptions) -> None:
    """On stdout: JSON, or the table and the verdict. Into the folder: all forms of it."""
    text = report.model_dump_json(indent=1) + "\n"
    if options.output is not None:
        _write(options.output / JSON_FILE, text)
        _write(options.output / MARKDOWN_FILE, to_markdown(report))
        for name in PLOT_FILES:
            write_plot(options.output / name, report)
    if options.as_json:
        sys.stdout.write(text)
        return
    shown = plain_console()
    shown.print(make_table(report))
    for line in report.verdict:
        shown.print(line, highlight=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
