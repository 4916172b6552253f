"""``clipdepth export``: tower and head as verified files for engines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from clipdepth_plugin.cli.console import loading, print_table
from clipdepth_plugin.cli.options import (
    LARGEST_SIDE,
    HeadOption,
    HostOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
    head_for,
)

if TYPE_CHECKING:
    from clipdepth_plugin.exporting.export import ExportResult

# As exporting.verifying.BOUNDS, which bring torch in.
_Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of the command."""

    host: HostOption
    head: HeadOption = ""
    output: OutputOption
    format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="onnx|pt2|aoti",
            help="onnx (where it is left out): for onnxruntime and TensorRT; pt2: torch.export; "
            "aoti: compiled for this machine by AOTInductor. Repeat it for several.",
        ),
    ] = None
    dtype: Annotated[
        _Dtype, typer.Option(help="Of weights, tokens and pixels; depth is float32.")
    ] = "float32"
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            min=1,
            max=LARGEST_SIDE,
            metavar="H W",
            help="Of the tower's input; as the head was trained, where it is left out.",
        ),
    ] = None
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Take 1 to 64 pictures, not one.")
    ] = False
    opset: Annotated[
        int | None,
        typer.Option(
            min=18, max=23, help="Of ONNX; 20 where it is left out, which TensorRT 10.0 reads."
        ),
    ] = None
    tower_alone: Annotated[
        bool,
        typer.Option(
            "--tower-alone", help="Also write the tower without depth; bench compares with it."
        ),
    ] = False
    tower: TowerOption = None
    other_tower: OtherTowerOption = False


def export_files(options: ExportOptions, console: Console) -> int:
    """Write tower and head as files for engines, each verified against PyTorch.

    A new folder gets tower_depth and head in each format, depth.json (how pictures become their
    input, shapes, checksums, errors) and a picture with its depth. Prints the errors, what
    TensorRT 10 may not read, and the trtexec line of each ONNX file.

    Exit code: 0, done. 2, the host, the head or an option is wrong, this machine lacks what a
    format needs, or a file differs from PyTorch by more than its bound; nothing was written, and
    the message says why. 3, an unexpected error.
    """
    options = dataclasses.replace(options, head=head_for(options.host, options.head))
    with loading(console, options.host, options.head):
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.errors import ExportError
        from clipdepth_plugin.exporting.export import NEW_ALONE, export
        from clipdepth_plugin.exporting.plan import ExportSettings
        from clipdepth_plugin.files.locks import check_new
        from clipdepth_plugin.shipped import load_head

        check_new(options.output, ExportError, NEW_ALONE)
        host, head = load_host(options.host), load_head(options.head)
    settings = ExportSettings(
        formats=tuple(dict.fromkeys(options.format or ["onnx"])),
        dtype=options.dtype,
        size=options.size,
        dynamic_batch=options.dynamic_batch,
        opset=options.opset,
        tower=options.tower,
        other_tower=options.other_tower,
        tower_alone=options.tower_alone,
        host_name=options.host,
        head_name=options.head,
    )
    result = export(
        host.model,
        head,
        options.output,
        settings,
        processor=host.preprocessing,
        say=console.print,
    )
    print_table(_table(result))
    for name, doubts in result.doubts.items():
        for doubt in doubts:
            console.print(f"TensorRT may refuse {name}: {doubt}", style="yellow")
    for line in result.engines:
        console.print(line)
    console.print(f"exported to {options.output}")
    return 0


def _table(result: ExportResult) -> Table:
    """How far each output is from PyTorch's."""
    table = Table("file", "output", title="against PyTorch in float32", title_justify="left")
    for header in ("largest error", "cosine"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, file in result.card.files.items():
        for output, found in file.verified.items():
            table.add_row(name, output, f"{found.worst:.1e}", f"{found.cosine:.7f}")
    return table
