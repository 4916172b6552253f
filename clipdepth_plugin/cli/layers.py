"""``clipdepth layers``: ranks a tower's levels and prints tables or JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from clipdepth_plugin.cli.console import bar, loading, plain_console, print_table
from clipdepth_plugin.cli.options import (
    MOST,
    DataOption,
    DeviceOption,
    HostOption,
    JsonOption,
    TowerOption,
)

if TYPE_CHECKING:
    from clipdepth_plugin.evaluation.layers import LayerRanking, LevelScore


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersOptions:
    """The options of the command."""

    host: HostOption
    data: DataOption
    val_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="What to score on; not given: a part of --data is held out."
        ),
    ] = None
    max_images: Annotated[
        int, typer.Option(min=2, max=MOST, help="Pictures to read of each set.")
    ] = 400
    patches: Annotated[
        int, typer.Option(min=0, max=MOST, help="Patches of each picture, at random; 0 takes all.")
    ] = 128
    ridge: Annotated[
        float, typer.Option(min=1e-9, max=1e9, help="Penalty on standardised tokens.")
    ] = 1e-2
    stages: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            help="Semantic levels to propose, one for each stage; the spaceclip presets take 4, "
            "fast and guided any number.",
        ),
    ] = 4
    as_json: JsonOption = False
    device: DeviceOption = "cpu"
    tower: TowerOption = None


def rank_layers(options: LayersOptions, console: Console) -> int:
    """Rank a tower's levels by how well they give depth, and propose the head's.

    A ridge regression of log depth on the tokens of each level alone, then of more levels
    together, scored on pictures that were held out.
    """
    probe = {name: getattr(options, name) for name in ("max_images", "ridge", "stages")}
    with loading(console, options.host), contextlib.redirect_stdout(sys.stderr):
        from clipdepth_plugin.adapters.identity import tower_hashes
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.adapters.towers import choose_tower
        from clipdepth_plugin.cli.data_spec import parse_data
        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.data import open_dataset
        from clipdepth_plugin.environment import package_versions
        from clipdepth_plugin.evaluation.layers import rank_levels
        from clipdepth_plugin.evaluation.patches import PatchReader
        from clipdepth_plugin.plugin.framing import known_preprocessing

        train = open_dataset(parse_data(options.data, "train"))
        validation = open_dataset(parse_data(options.val_data, "val")) if options.val_data else None
        device = find_device(options.device)
        host = load_host(options.host)
        tower = choose_tower(host.model.to(device), options.tower)
    preprocessing = known_preprocessing(tower, host.preprocessing)
    reader = PatchReader(tower, preprocessing, options.patches or None)
    with bar(console, "probing", None) as advance:
        ranking = rank_levels(reader, train, validation, **probe, advance=advance)
    if options.as_json:
        report = {
            "format": "clipdepth-layers/1",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "versions": package_versions(),
            "host": options.host,
            "tower_hashes": tower_hashes(tower),
            "data": options.data,
            "options": {**probe, "patches": options.patches or None},
            **asdict(ranking),
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _print_ranking(ranking, plain_console())
    return 0


def _print_ranking(ranking: LayerRanking, out: Console) -> None:
    tables: dict[str, dict[str, tuple[LevelScore, ...]]] = {
        "each level alone": {"": (*ranking.singles, ranking.constant)},
        "one more at a time": {"": ranking.steps},
        "presets, all their levels": {name: (one,) for name, one in ranking.presets.items()},
    }
    for title, groups in tables.items():
        table = Table("", "levels", title=title, title_justify="left")
        for measure in ("RMSElog", "AbsRel", "d<1.25"):
            table.add_column(measure, justify="right", no_wrap=True)
        for name, scores in groups.items():
            for one in scores:
                levels = " ".join(map(str, one.levels)) or "(constant)"
                numbers = (one.rmse_log, one.abs_rel, one.delta1)
                table.add_row(name, levels, *(f"{number:.4f}" for number in numbers))
        print_table(table)
    train, validation = ranking.images
    chosen = list(ranking.structural)
    structural = f"structural_levels: {chosen}" if chosen else "structural: false"
    out.print(
        f"ridge on {ranking.features} features a level; {train} pictures fitted, {validation} "
        f"scored (held out: {ranking.split})\n"
        f"proposed:\n  semantic_levels: {list(ranking.semantic)}\n  {structural}"
    )
