"""What ``clipdepth eval`` does, below its options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.cli.console import bar, loading, plain_console
from clipdepth_plugin.cli.data_spec import parse_data
from clipdepth_plugin.cli.device import find_device, make_folder
from clipdepth_plugin.data import open_dataset
from clipdepth_plugin.evaluation.evaluate import Baseline, evaluate, median_depth
from clipdepth_plugin.evaluation.image_grid import SHEET_FILE, check_count, write_sheet
from clipdepth_plugin.evaluation.metrics import Alignment
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.evaluation.protocols import SMALLEST_DEPTH, Protocol, get_protocol
from clipdepth_plugin.evaluation.report import (
    CSV_FILE,
    JSON_FILE,
    make_report,
    make_table,
    write_csv,
    write_json,
)
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.weights.shipped import load_head

if TYPE_CHECKING:
    from clipdepth_plugin.data import DataConfig
    from clipdepth_plugin.head import DepthHead


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The options of ``clipdepth eval``, as its help describes them."""

    host: str
    head: str
    data: str
    protocol: str
    output: Path
    align: Alignment = "none"
    baseline_data: str | None = None
    flip: bool | None = None
    kb_crop: bool = False
    input_size: tuple[int, int] | None = None
    pictures: int = 3
    batch_size: int = 1
    device: str = "cpu"
    tower: str | None = None


def run_eval(options: EvalOptions, command: Sequence[str], console: Console) -> None:
    """Evaluates, prints the table on stdout and writes the files.

    Raises:
        ValueError: The host, head, data or protocol is wrong, more pictures are asked for than a
            sheet holds, or a file can't be written.
    """
    check_count(options.pictures)
    protocol, config = protocol_and_data(options)
    dataset = open_dataset(config)
    baseline = _train_baseline(options, protocol)
    device = find_device(options.device)
    make_folder(options.output)
    with console.status(loading(options.host, options.head)):
        host = load_host(options.host)
        head = load_head(options.head).to(device)
        model = host.model.to(device)
        plugin = DepthPlugin(model, head, tower=options.tower, processor=host.preprocessing)
    predict = HeadPredictor(plugin, input_size=options.input_size)
    _say_size(head, options, console)
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
        command=tuple(command),
        device=options.device,
        host=options.host,
        head=options.head,
        tower_hashes=tower_hashes(plugin.tower),
        data=config.model_dump(mode="json"),
        align=options.align,
    )
    write_json(options.output / JSON_FILE, report)
    write_csv(options.output / CSV_FILE, result, options.align)
    if options.pictures:
        sheet, count = options.output / SHEET_FILE, options.pictures
        write_sheet(sheet, result, predict, dataset, alignment=options.align, count=count)
    plain_console().print(make_table(result, options.align))
    skipped = f"; {len(result.skipped)} without valid depth" if result.skipped else ""
    console.print(f"report in {options.output}{skipped}", highlight=False, soft_wrap=True)


def _say_size(head: DepthHead, options: EvalOptions, console: Console) -> None:
    """Says that the pictures have another size than those that the head was trained on."""
    given, trained = options.input_size, head.config.input_size
    if given is not None and trained not in (None, given):
        console.print(
            f"--input-size {given[0]} {given[1]}: {options.head} was trained at "
            f"{trained[0]} {trained[1]}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def protocol_and_data(options: EvalOptions) -> tuple[Protocol, DataConfig]:
    """The protocol, and the data opened as it wants them.

    A benchmark's protocol has its own depth range and crop, so the data set must not cut anything
    away before. ``rgbd`` takes the config's range; where that names no farthest depth, the data
    set's own bound stands and predictions are not clipped above.
    """
    config = parse_data(options.data)
    how: dict[str, Any] = {"flip": options.flip, "kb_crop": options.kb_crop}
    if options.protocol == "rgbd":
        high = math.inf if config.max_depth is None else config.max_depth
        depth_range = (max(config.min_depth, SMALLEST_DEPTH), high)
        return get_protocol("rgbd", depth_range=depth_range, **how), config
    protocol = get_protocol(options.protocol, **how)
    whole = {"min_depth": protocol.low, "max_depth": protocol.high, "crop": None}
    return protocol, config.model_copy(update=whole)


def _train_baseline(options: EvalOptions, protocol: Protocol) -> Baseline | None:
    if options.baseline_data is None:
        return None
    whole = replace(protocol, crop="none", size=None, kb_crop=False)
    dataset = open_dataset(parse_data(options.baseline_data, "train"))
    return Baseline("train-median", median_depth(dataset, whole))


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
