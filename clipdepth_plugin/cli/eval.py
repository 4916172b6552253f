"""``clipdepth eval`` and ``clipdepth layers``: options and their help; the work is elsewhere."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipdepth_plugin.cli.options import (
    DeviceOption,
    HeadOption,
    HostOption,
    TowerOption,
    errors_as_messages,
)

_DATA_HELP = (
    "FORMAT:ROOT or FORMAT:ROOT:SPLIT (rgbd:data/libero:test), or a YAML or JSON file with the "
    "fields of a data set's config."
)

DataOption = Annotated[str, typer.Option("--data", metavar="DATA", help=_DATA_HELP)]


class ProtocolName(StrEnum):
    """Names of ``evaluation.protocols.PROTOCOLS``."""

    NYU = "nyu"
    KITTI_GARG = "kitti-garg"
    KITTI_EIGEN = "kitti-eigen"
    RGBD = "rgbd"


class AlignName(StrEnum):
    """Names of ``evaluation.metrics.ALIGNMENTS``."""

    NONE = "none"
    MEDIAN = "median"
    LSQ = "lsq"


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command(name="eval")(evaluate)
    app.command()(layers)


def evaluate(  # noqa: PLR0913, PLR0917 (a command's options)
    host: HostOption,
    head: HeadOption,
    data: DataOption,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder to write to, made if missing."),
    ],
    protocol: Annotated[
        ProtocolName, typer.Option(help="Crop, depth range and mirroring.")
    ] = ProtocolName.RGBD,
    align: Annotated[
        AlignName,
        typer.Option(help="Scaling of each picture in the CSV and the picture sheet."),
    ] = AlignName.NONE,
    baseline_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="The training set, whose median depth the constant is; else the test set's own.",
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Average with the mirrored picture's prediction."),
    ] = None,
    kb_crop: Annotated[
        bool, typer.Option("--kb-crop", help="Show the tower only KITTI's 352 x 1216.")
    ] = False,
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W",
            help="The tower's input, in place of the size that the head was trained at.",
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Best, median and worst pictures of each on the sheet.")
    ] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one tower pass.")] = 1,
    device: DeviceOption = "cpu",
    tower: TowerOption = None,
) -> None:
    """Measure a depth head on a data set.

    Writes report.json, images.csv and pictures.png. The table always has the raw figures and the
    scale-aligned ones, each beside a constant depth.

    Exit code: 0, done. 2, the host, the head, the data or the output is wrong; the message says
    which.
    """
    with errors_as_messages() as console:
        from clipdepth_plugin.cli.run_eval import EvalOptions, run_eval

        options = EvalOptions(
            host=host,
            head=head,
            data=data,
            protocol=protocol.value,
            output=output,
            align=align.value,
            baseline_data=baseline_data,
            flip=flip,
            kb_crop=kb_crop,
            input_size=input_size,
            pictures=pictures,
            batch_size=batch_size,
            device=device,
            tower=tower,
        )
        run_eval(options, sys.argv, console)


def layers(  # noqa: PLR0913, PLR0917 (a command's options)
    host: HostOption,
    data: DataOption,
    val_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="What to score on; else a part of --data is held out."),
    ] = None,
    max_images: Annotated[int, typer.Option(min=2, help="Pictures to read of each set.")] = 400,
    patches: Annotated[
        int, typer.Option(min=0, help="Patches of each picture, at random; 0 takes all.")
    ] = 128,
    ridge: Annotated[float, typer.Option(min=1e-9, help="Penalty on standardised tokens.")] = 1e-2,
    stages: Annotated[
        int,
        typer.Option(
            min=1,
            help="Semantic levels to propose, one for each stage; the spaceclip presets take 4, "
            "fast and guided any number.",
        ),
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    device: DeviceOption = "cpu",
    tower: TowerOption = None,
) -> None:
    """Rank a tower's levels by how well they give depth, and propose the head's.

    A ridge regression of log depth on the tokens of each level alone, then of more levels
    together, scored on pictures that were held out.
    """
    with errors_as_messages() as console:
        from clipdepth_plugin.cli.run_layers import LayersOptions, run_layers
        from clipdepth_plugin.evaluation.layers import ProbeOptions

        probe = ProbeOptions(max_images, patches or None, ridge, stages)
        options = LayersOptions(host, data, val_data, probe, as_json, device, tower)
        run_layers(options, sys.argv, console)
