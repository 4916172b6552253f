"""``clipdepth bench``: what depth adds to a host; ``latency/`` measures, this prints and writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from clipdepth_plugin.cli.options import (
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST,
    DeviceOption,
    JsonOption,
    RandomWeightsOption,
    TowerOption,
)
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.scopes import ScopeChoice

if TYPE_CHECKING:
    import torch

    from clipdepth_plugin.latency.subject import Subject

Dtype = Literal["float32", "bfloat16", "float16"]
_HOST_HELP = (
    "config:NAME for a built-in config with random weights (vit-b-16, vit-l-14-336, siglip-b-16, "
    "so400m-14, llava-small, paligemma-small), or a host as for predict."
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``clipdepth bench``."""

    host: Annotated[str, typer.Argument(metavar="HOST", help=_HOST_HELP)]
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="HEAD", help="A trained head; may be repeated."),
    ] = None
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="PRESET",
            help="A random head of this preset; may be repeated. Default: spaceclip and fast.",
        ),
    ] = None
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            metavar="FORM",
            help="eager, fused, compiled, graph or plain-graph; may be repeated. Default: all that "
            "the device can run, on a CPU without compiled.",
        ),
    ] = None
    tower: TowerOption = None
    scope: Annotated[
        ScopeChoice,
        typer.Option(help="auto: the tower, and the prefill where the host has a language model."),
    ] = "auto"
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Pictures in one pass.")] = 1
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST_SIDE,
            help="Pixels on a side. Default: the tower's own, or that of --exported.",
        ),
    ] = None
    dtype: Annotated[Dtype, typer.Option(help="Of all weights.")] = "float32"
    device: DeviceOption = "cpu"
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="torch's threads. Default: torch's own choice."),
    ] = None
    rounds: Annotated[
        int, typer.Option(min=8, max=MOST, help="Interleaved rounds; each runs every variant once.")
    ] = 20
    warmup: Annotated[
        int,
        typer.Option(
            min=2, max=MOST, help="Untimed calls of each variant; the second records graphs."
        ),
    ] = 2
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of the order in each round.")
    ] = 0
    separate: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="Sizes of a separate Depth-Anything-V2-S, joined by commas, or none.",
        ),
    ] = "224,518"
    exported: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of clipdepth export, in onnxruntime, in the same rounds; with its "
            "tower.onnx also what depth adds where both are exported.",
        ),
    ] = None
    text_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="Tokens of the prompt beside the picture's. Default: 32."
        ),
    ] = None
    random_weights: RandomWeightsOption = False
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for JSON, Markdown and plot."),
    ] = None
    as_json: JsonOption = False


def parse_sizes(text: str) -> tuple[int, ...]:
    """``224,518`` -> (224, 518); ``none`` -> ().

    Raises:
        BenchError: A size that is no multiple of the network's patches of 14, or too large.
    """
    if text == "none":
        return ()
    words = [word.strip() for word in text.split(",")]
    sizes = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(sizes) != len(words) or any(not 0 < size <= LARGEST_SIDE or size % 14 for size in sizes):
        raise BenchError(
            f"--separate {text}: give multiples of 14 up to {LARGEST_SIDE}, as 224,518, or none"
        )
    return tuple(sizes)


def run_bench(options: BenchOptions, console: Console) -> int:
    """Measure what depth adds to a host: time, memory, operations.

    Host alone, with hooks, with depth, the heads alone and a separate depth network run
    interleaved in rounds. Every figure is a median of paired differences with its bootstrap 95%
    interval, of the tower or of the prefill. Effects below the noise floor are reported as such.
    """
    from clipdepth_plugin.cli.bench_heads import check_heads, load_heads
    from clipdepth_plugin.cli.bench_report import write_report
    from clipdepth_plugin.cli.console import bar, loading

    check_heads(options.head or (), options.preset or ())
    separate_sizes = parse_sizes(options.separate)
    with loading(console, options.host):
        import torch

        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.latency.audit import Method, audit
        from clipdepth_plugin.latency.baselines import separate_passes
        from clipdepth_plugin.latency.exported import exported_passes
        from clipdepth_plugin.latency.forms import choose_forms
        from clipdepth_plugin.latency.resources import keep_freed_memory

        device = find_device(options.device)
        forms = choose_forms(tuple(options.form or ()), device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        keep_freed_memory()
        subject = load_subject(options, device)
        heads = load_heads(options.head or (), options.preset or (), subject)
        folder = options.exported
        exported = None if folder is None else exported_passes(folder, subject)
        separate = separate_passes(separate_sizes, subject.inputs.pixels, subject.batch)
    for note in (*subject.notes, *(exported.notes if exported else ())):
        console.print(note, style="yellow")
    with bar(console, "rounds", options.rounds) as advance:
        report = audit(
            subject,
            heads,
            forms=forms,
            separate=separate,
            exported=exported,
            method=Method(options.rounds, options.warmup, options.seed, advance=lambda: advance(1)),
            command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        )
    write_report(report, options.output, as_json=options.as_json)
    return 0


def load_subject(options: BenchOptions, device: torch.device) -> Subject:
    """The host on its device, with the passes that depth is added to."""
    import torch

    from clipdepth_plugin.adapters.loading import load_host
    from clipdepth_plugin.adapters.towers import choose_tower
    from clipdepth_plugin.latency.processed import needed_processor
    from clipdepth_plugin.latency.subject import TEXT_TOKENS, make_subject
    from clipdepth_plugin.runtime.folder import read_card

    host = load_host(options.host, random_weights=options.random_weights)
    model = host.model.to(device, getattr(torch, options.dtype))
    size = None if options.size is None else (options.size, options.size)
    if size is None and options.exported is not None:
        size = read_card(options.exported).size
    subject = make_subject(
        model,
        label=host.label,
        tower=options.tower,
        scope=options.scope,
        batch=options.batch,
        size=size,
        text_tokens=options.text_tokens or TEXT_TOKENS,
        processor=needed_processor(host, choose_tower(model, options.tower)),
    )
    if options.text_tokens is not None and subject.prompt_tokens is None:
        raise BenchError(
            f"--text-tokens {options.text_tokens}: no prompt is measured (--scope {options.scope}, "
            f"{host.label}); leave the option out"
        )
    return subject
