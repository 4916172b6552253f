"""``clipdepth bench``: options and their help; the work is in ``latency/``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipdepth_plugin.cli.command import errors_as_messages
from clipdepth_plugin.cli.options import DeviceOption, TowerOption
from clipdepth_plugin.errors import BenchError

KERNELS = "kernels"
_OF_KERNELS = {"host", "device", "threads", "output", "as_json"}
"""Options that ``bench kernels`` takes."""
_HOST_HELP = (
    "config:NAME for a built-in config with random weights (vit-b-16, vit-l-14-336, siglip-b-16, "
    "so400m-14, llava-small, paligemma-small), or a host as for predict; kernels times the fused "
    "ops instead of a host."
)


class DtypeName(StrEnum):
    """Names of ``latency.bench_options.DTYPES``."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ScopeName(StrEnum):
    """What depth is added to."""

    AUTO = "auto"
    TOWER = "tower"
    PREFILL = "prefill"


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command()(bench)


def bench(  # noqa: PLR0913, PLR0917 (a command's options)
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help=_HOST_HELP)],
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="HEAD", help="A trained head; may be repeated."),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="PRESET",
            help="A random head of this preset; may be repeated. Not given: spaceclip and fast.",
        ),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            metavar="FORM",
            help="eager, fused, compiled, graph; may be repeated. Not given: all that "
            "the device has, on a CPU without compiled.",
        ),
    ] = None,
    tower: TowerOption = None,
    scope: Annotated[
        ScopeName,
        typer.Option(help="auto: the tower, and the prefill where the host has a language model."),
    ] = ScopeName.AUTO,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 1,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels on a side; not given: the tower's own.")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Of all weights.")] = DtypeName.FLOAT32,
    device: DeviceOption = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads; not given: torch's own choice.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=8, help="Interleaved rounds; each runs everything once.")
    ] = 20,
    warmup: Annotated[
        int,
        typer.Option(
            min=2, help="Untimed calls of each before; graphs are recorded in the second."
        ),
    ] = 2,
    seed: Annotated[int, typer.Option(help="Of the order in each round.")] = 0,
    separate: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="Sizes of a separate Depth-Anything-V2-S, joined by commas; none for none.",
        ),
    ] = "224,518",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="WHAT=VALUES",
            help="batch=1,2,4 or pixels=224,336 or levels=1,2,4,8; may be repeated; none for none. "
            "Not given: batch=1,2,4.",
        ),
    ] = None,
    sweep_rounds: Annotated[int, typer.Option(min=8, help="Interleaved rounds of a sweep.")] = 10,
    text_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the prompt beside the picture's.")
    ] = 32,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Build the host from its config, without weights."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for JSON, Markdown and plots."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, and nothing else, on stdout.")] = (
        False
    ),
) -> None:
    """Measure what depth adds to a host: time, memory, operations.

    Host alone, with hooks, with depth, the heads alone and a separate depth network run
    interleaved in rounds; every figure is a median of paired differences with its bootstrap 95%
    interval, and says whether it is of the tower or of the prefill. Where noise is larger than
    an effect, the report says so in place of a number.

    bench kernels times each fused op and whole heads instead: plain eager, torch.compile, fused,
    fused in a CUDA graph, with the targets that they are to meet; it takes --device, --threads,
    --output and --json.

    Exit code: 0, done. 1, a kernel failed or gave other numbers; the table says which. 2, the
    host, a head or an option is wrong; the message says which.
    """
    with errors_as_messages() as console:
        if host == KERNELS:
            bench_kernels(context, output, device=device, as_json=as_json, threads=threads)
            return
        from clipdepth_plugin.cli.bench_options import BenchOptions
        from clipdepth_plugin.cli.run_bench import run_bench

        options = BenchOptions(
            host=host,
            heads=tuple(head or ()),
            presets=tuple(preset or ()),
            forms=tuple(form or ()),
            tower=tower,
            scope=scope.value,
            batch=batch,
            size=size,
            dtype=dtype.value,
            device=device,
            threads=threads,
            rounds=rounds,
            warmup=warmup,
            seed=seed,
            separate=parse_sizes(separate),
            sweeps=("batch=1,2,4",) if sweep is None else tuple(s for s in sweep if s != "none"),
            sweep_rounds=sweep_rounds,
            text_tokens=text_tokens,
            random_weights=random_weights,
            output=output,
            as_json=as_json,
        )
        run_bench(options, command_line(), console)


def command_line() -> tuple[str, ...]:
    """As typed, without the folder that the command lies in."""
    return (Path(sys.argv[0]).name, *sys.argv[1:])


def parse_sizes(text: str) -> tuple[int, ...]:
    """``224,518`` -> (224, 518); ``none`` -> ().

    Raises:
        BenchError: A size that is no positive multiple of the network's patches of 14.
    """
    if text == "none":
        return ()
    words = [word.strip() for word in text.split(",")]
    sizes = [int(word) for word in words if word.isdigit()]
    if len(sizes) != len(words) or any(size == 0 or size % 14 for size in sizes):
        raise BenchError(f"--separate {text}: give multiples of 14, as 224,518, or none")
    return tuple(sizes)


def bench_kernels(
    context: typer.Context,
    output: Path | None,
    *,
    device: str,
    as_json: bool,
    threads: int | None,
) -> None:
    """``clipdepth bench kernels``.

    Raises:
        BenchError: An option was given that has no meaning there.
        typer.Exit: A kernel failed, or gave other numbers.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
    if foreign := sorted(given - _OF_KERNELS):
        raise BenchError(
            f"bench kernels takes no --{foreign[0].replace('_', '-')}: its heads, forms, dtypes "
            "and rounds are fixed, so that two runs can be compared"
        )
    from clipdepth_plugin.cli.kernel_bench import run_kernel_bench

    report = run_kernel_bench(
        output, device=device, as_json=as_json, command=command_line(), threads=threads
    )
    if report.failures:
        raise typer.Exit(1)
