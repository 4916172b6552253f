"""``clipdepth eval``: measures a head on a data set, writes a report and prints its table."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from clipdepth_plugin.arguments import parse_size
from clipdepth_plugin.cli.console import bar, loading, print_table
from clipdepth_plugin.cli.eval_table import make_table
from clipdepth_plugin.cli.options import (
    BatchOption,
    DataOption,
    DeviceOption,
    HeadOption,
    HostOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
    head_for,
)
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.protocols import (
    SMALLEST_DEPTH,
    Alignment,
    Protocol,
    ProtocolName,
    get_protocol,
)

if TYPE_CHECKING:
    from clipdepth_plugin.data import DataConfig
    from clipdepth_plugin.evaluation.evaluate import Baseline
    from clipdepth_plugin.head import DepthHead


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The options of the command."""

    host: HostOption
    head: HeadOption = ""
    data: DataOption
    output: OutputOption
    protocol: Annotated[ProtocolName, typer.Option(help="Crop, depth range and mirroring.")] = (
        "rgbd"
    )
    align: Annotated[
        Alignment | None,
        typer.Option(
            help="Scaling of each picture in the CSV and the image grid; not given: none, for "
            "relative depth (metric: false) inverse, and no other."
        ),
    ] = None
    baseline_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="The training set, whose median depth the constant is; not given: the test set's.",
        ),
    ] = None
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Average with the mirrored picture's prediction."),
    ] = None
    kb_crop: Annotated[
        bool, typer.Option("--kb-crop", help="Show the tower only KITTI's 352 x 1216.")
    ] = False
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W",
            help="The tower's input, in place of the size that the head was trained at.",
        ),
    ] = None
    pictures: Annotated[
        int,
        typer.Option(
            min=0, max=50, help="Best, median and worst pictures of each in the image grid."
        ),
    ] = 3
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
    tower: TowerOption = None
    other_tower: OtherTowerOption = False


def evaluate_head(options: EvalOptions, console: Console) -> int:
    """Measure a depth head on a data set.

    Writes report.json, images.csv and pictures.png. The table always has the raw figures and the
    scale-aligned ones, each beside a constant depth.

    Exit code: 0, done. 2, the host, the head, the data or the output is wrong; the message says
    which. 3, an unexpected error.
    """
    options = dataclasses.replace(options, head=head_for(options.host, options.head))
    with loading(console, options.host, options.head):
        from clipdepth_plugin.adapters.identity import tower_hashes
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.data import open_dataset
        from clipdepth_plugin.evaluation.evaluate import evaluate
        from clipdepth_plugin.evaluation.predictors import HeadPredictor
        from clipdepth_plugin.evaluation.report import make_report, write_image_grid, write_report
        from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
        from clipdepth_plugin.shipped import load_head

        if options.input_size is not None:
            parse_size(options.input_size, "--input-size")
        protocol, config = protocol_and_data(options)
        dataset = open_dataset(config)
        device = find_device(options.device)
    baseline = _train_baseline(options, protocol, console)
    with loading(console, options.host, options.head):
        host = load_host(options.host)
        head = load_head(options.head).to(device)
        model = host.model.to(device)
        align = _alignment(head, options, protocol)
        plugin = DepthPlugin(
            model,
            head,
            tower=options.tower,
            processor=host.preprocessing,
            other_tower=options.other_tower,
        )
    predict = HeadPredictor(plugin, input_size=options.input_size)
    _say_size(head, options, console)
    if baseline is None:
        baseline = _baseline("test-median", dataset, protocol, console)
    with bar(console, "evaluating", _length(dataset)) as advance:
        result = evaluate(
            predict,
            dataset,
            protocol,
            batch_size=options.batch_size,
            baseline=baseline,
            advance=advance,
        )
    report = make_report(
        result,
        command=tuple(sys.argv),
        device=options.device,
        host=options.host,
        head=options.head,
        tower_hashes=tower_hashes(plugin.tower),
        data=config.model_dump(mode="json"),
        align=align,
    )
    write_report(options.output, report, result)
    if options.pictures:
        path, count = options.output / "pictures.png", options.pictures
        write_image_grid(path, result, predict, dataset, alignment=align, count=count)
    print_table(make_table(result, align))
    skipped = f"; {len(result.skipped)} without valid depth" if result.skipped else ""
    console.print(f"report in {options.output}{skipped}")
    return 0


def _alignment(head: DepthHead, options: EvalOptions, protocol: Protocol) -> Alignment:
    """The alignment that files show; refuses what relative depth can't be measured by."""
    relative = not head.config.metric
    if options.align is not None and relative != (options.align == "inverse"):
        raise DataError(
            f"--align {options.align}: {options.head} gives "
            + ("relative depth (metric: false), which" if relative else "metres; inverse")
            + (" is aligned by inverse alone" if relative else " is for relative depth")
            + "; leave the option out"
        )
    if relative and protocol.flip:
        raise DataError(
            f"{options.head} gives relative depth (metric: false), which can't be averaged with "
            "the mirrored picture's: give --no-flip"
        )
    return "inverse" if relative else options.align or "none"


def _say_size(head: DepthHead, options: EvalOptions, console: Console) -> None:
    """Says that the pictures have another size than those that the head was trained on."""
    given, trained = options.input_size, head.config.input_size
    if given is not None and trained not in (None, given):
        console.print(
            f"--input-size {given[0]} {given[1]}: {options.head} was trained at "
            f"{trained[0]} {trained[1]}",
            style="yellow",
        )


def protocol_and_data(options: EvalOptions) -> tuple[Protocol, DataConfig]:
    """The protocol, and the data set's config with the range and crop that it needs.

    A benchmark's protocol has its own depth range and crop, so the data set must not remove
    pixels before. ``rgbd`` takes the config's range; where that has no farthest depth, the data
    set's own bound applies and predictions are not clipped above.
    """
    from clipdepth_plugin.cli.data_spec import parse_data

    config = parse_data(options.data)
    how: dict[str, Any] = {"flip": options.flip, "kb_crop": options.kb_crop}
    if options.protocol == "rgbd":
        how["depth_range"] = max(config.min_depth, SMALLEST_DEPTH), config.max_depth
        return get_protocol("rgbd", **how), config
    protocol = get_protocol(options.protocol, **how)
    for name in ("min_depth", "max_depth", "crop"):
        if config.given(name):
            raise DataError(
                f"--data {options.data}: {name} is {getattr(config, name)}, but --protocol "
                f"{options.protocol} has its own; leave {name} out, or measure with --protocol rgbd"
            )
    whole = {"min_depth": protocol.low, "max_depth": protocol.high, "crop": None}
    return protocol, config.model_copy(update=whole)


def _train_baseline(options: EvalOptions, protocol: Protocol, console: Console) -> Baseline | None:
    if options.baseline_data is None:
        return None
    from clipdepth_plugin.cli.data_spec import parse_data
    from clipdepth_plugin.data import open_dataset

    whole = replace(protocol, crop="none", size=None, kb_crop=False)
    dataset = open_dataset(parse_data(options.baseline_data, "train"))
    return _baseline("train-median", dataset, whole, console)


def _baseline(
    kind: Literal["train-median", "test-median"],
    dataset: Any,
    protocol: Protocol,
    console: Console,
) -> Baseline:
    from clipdepth_plugin.evaluation.evaluate import Baseline, median_depth

    with bar(console, "reading the depth", _length(dataset)) as advance:
        return Baseline(kind, median_depth(dataset, protocol, advance))


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
