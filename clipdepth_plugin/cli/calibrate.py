"""``clipdepth calibrate``: fits a head's metres and confidence to measured depths."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from clipdepth_plugin.cli.console import bar, loading, print_table
from clipdepth_plugin.cli.options import (
    BatchOption,
    DeviceOption,
    HeadOption,
    HostOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
    head_for,
)
from clipdepth_plugin.errors import HeadFileError
from clipdepth_plugin.files.locks import check_new
from clipdepth_plugin.metric_calibration import interval

if TYPE_CHECKING:
    from clipdepth_plugin.calibrating.calibrate import Calibrated

# As calibrating.choosing.When, which brings torch in.
_When = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions:
    """The options of the command."""

    host: HostOption
    head: HeadOption = ""
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Measured depths: POINTS.csv (picture,x,y,metres[,focal_px]), FORMAT:ROOT or "
            "FORMAT:ROOT:SPLIT (rgbd:clip:train), or a YAML or JSON file with the fields of a data "
            "set's config.",
        ),
    ]
    output: OutputOption
    slope: Annotated[
        _When,
        typer.Option(help="Fit a slope in log depth, too; auto: where it helps significantly."),
    ] = "auto"
    confidence: Annotated[
        _When, typer.Option(help="Fit the confidence, too; auto: where it helps.")
    ] = "auto"
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
    tower: TowerOption = None
    other_tower: OtherTowerOption = False


def calibrate_head(options: CalibrateOptions, console: Console) -> int:
    """Fit a head's metres to measured depths: a new head, with error bars.

    Fits the scale, and a slope in log depth and the confidence where the points determine them and
    groups of pictures that are left out get better. Writes the head with its card, and report.json,
    into a new folder; the old head stays as it is.

    Exit code: 0, done. 2, the host, the head, the points or the output is wrong, or the points do
    not determine what is asked for; the message says which. 3, an unexpected error.
    """
    options = dataclasses.replace(options, head=head_for(options.host, options.head))
    with loading(console, options.host, options.head):
        from clipdepth_plugin.adapters.identity import tower_hashes
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.calibrating.calibrate import calibrate
        from clipdepth_plugin.calibrating.readings import read_points, uncalibrated
        from clipdepth_plugin.calibrating.report import NEW_ALONE, make_report, write_calibrated
        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
        from clipdepth_plugin.shipped import load_head

        check_new(options.output, HeadFileError, NEW_ALONE)
        dataset, name, data = _measured(options.data)
        device = find_device(options.device)
        host = load_host(options.host)
        head = load_head(options.head).to(device)
        model = host.model.to(device)
        plugin = DepthPlugin(
            model,
            uncalibrated(head),
            tower=options.tower,
            processor=host.preprocessing,
            other_tower=options.other_tower,
        )
    count = len(dataset) if hasattr(dataset, "__len__") else None
    with bar(console, "reading the head at the points", count) as advance:
        readings = read_points(plugin, dataset, batch_size=options.batch_size, advance=advance)
    result = calibrate(
        head,
        readings,
        data=name,
        slope=options.slope,
        confidence=options.confidence,
        tower_hashes=tower_hashes(plugin.tower) if options.other_tower else None,
    )
    environment = {name: getattr(options, name) for name in ("device", "host", "head")}
    report = make_report(result, command=tuple(sys.argv), data=data, **environment)
    write_calibrated(options.output, result, report)
    print_table(make_table(result))
    _say_doubts(result, console)
    console.print(f"head and report in {options.output}")
    return 0


def _measured(text: str) -> tuple[Any, str, dict[str, Any]]:
    """The samples, their name in the card, and what the report says of them."""
    from clipdepth_plugin.cli.data_spec import parse_data
    from clipdepth_plugin.data import open_dataset
    from clipdepth_plugin.data.points import PointsFile

    if text.lower().endswith(".csv") and os.path.isfile(text):  # noqa: PTH113
        return PointsFile(Path(text)), Path(text).name, {"points": text}
    config = parse_data(text, "train")
    named = f"{config.format}:{config.title}"
    name = f"{named}:{config.split}" if config.split else named
    return open_dataset(config), name, config.model_dump(mode="json")


def _say_doubts(result: Calibrated, console: Console) -> None:
    """What the user would otherwise take the figures for."""
    record = result.record
    doubts = []
    if result.after is None:
        doubts.append(
            f"all points are of one {'picture' if record.pictures == 1 else 'group of pictures'}: "
            "the scale is fitted, its error bar and what it is worth elsewhere can't be known"
        )
    elif not result.better:
        doubts.append(
            "AbsRel of pictures that are left out is not significantly smaller than before: look "
            "at the table before you use the new head"
        )
    if result.readings.grouping.endswith("blocks of consecutive pictures"):
        doubts.append(
            "the pictures are of few sequences: the error bars say how the scale varies along "
            "them, not between places"
        )
    for doubt in doubts:
        console.print(doubt, style="yellow")


def make_table(result: Calibrated) -> Table:
    """Before and after, of groups of pictures that were left out of the fit."""
    record, after = result.record, result.after
    title = (
        f"{record.points} points in {record.pictures} pictures, {record.groups} groups "
        f"({result.readings.grouping}); {record.left_out} points left out of the fit"
    )
    confidence = f"confidence scale {result.confidence_scale[1]:.4g}"
    reach = interval(record.confidence_error, record.groups)
    if reach is not None:
        low, high = (result.confidence_scale[1] * math.exp(sign * reach) for sign in (-1, 1))
        confidence += f" (95%: {low:.4g} to {high:.4g})"
    lines = [record.said, confidence]
    lines += [f"slope not fitted: {result.no_slope}"] if result.no_slope else []
    lines += [f"confidence not fitted: {result.no_confidence}"] if result.no_confidence else []
    table = Table(
        "", title=title, title_justify="left", caption="\n".join(lines), caption_justify="left"
    )
    for header in ("before", "after (cross-validated)"):
        table.add_column(header, justify="right", no_wrap=True)
    for label, field in (
        ("AbsRel \N{DOWNWARDS ARROW}", "abs_rel"),
        ("d<1.25 \N{UPWARDS ARROW}", "delta1"),
        ("calibration error of the confidence \N{DOWNWARDS ARROW}", "calibration_error"),
    ):
        values = [getattr(one, field, None) for one in (result.before, after)]
        table.add_row(label, *("-" if value is None else f"{value:.4f}" for value in values))
    return table
