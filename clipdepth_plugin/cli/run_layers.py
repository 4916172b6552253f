"""What ``clipdepth layers`` does, below its options."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.cli.console import bar, loading, plain_console
from clipdepth_plugin.cli.data_spec import parse_data
from clipdepth_plugin.cli.device import find_device
from clipdepth_plugin.data import open_dataset
from clipdepth_plugin.environment import package_versions
from clipdepth_plugin.evaluation.layers import LayerRanking, LevelScore, ProbeOptions, rank_levels
from clipdepth_plugin.plugin.framing import known_preprocessing


@dataclass(frozen=True, slots=True)
class LayersOptions:
    """The options of ``clipdepth layers``, as its help describes them."""

    host: str
    data: str
    validation_data: str | None = None
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    as_json: bool = False
    device: str = "cpu"
    tower: str | None = None


def run_layers(options: LayersOptions, command: Sequence[str], console: Console) -> None:
    """Ranks the levels and prints tables, or JSON and nothing else, on stdout.

    Raises:
        ValueError: The host or the data is wrong.
    """
    train = open_dataset(parse_data(options.data, "train"))
    held = options.validation_data
    validation = None if held is None else open_dataset(parse_data(held, "val"))
    device = find_device(options.device)
    with console.status(loading(options.host)), contextlib.redirect_stdout(sys.stderr):
        loaded = load_host(options.host)
        tower = choose_tower(loaded.model.to(device), options.tower)
    preprocessing = known_preprocessing(tower, loaded.preprocessing)
    with bar(console, "probing", None) as advance:
        seen = 0

        def told(done: int, total: int) -> None:
            nonlocal seen
            advance(done - seen, total)
            seen = done

        ranking = rank_levels(
            tower, preprocessing, train, validation, options=options.probe, advance=told
        )
    if options.as_json:
        said = {
            "format": "clipdepth-layers/1",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(command),
            "versions": package_versions(),
            "host": options.host,
            "tower_hashes": tower_hashes(tower),
            "data": options.data,
            "options": asdict(options.probe),
            **asdict(ranking),
        }
        sys.stdout.write(json.dumps(said, indent=2) + "\n")
    else:
        _print_ranking(ranking, plain_console())


def _print_ranking(ranking: LayerRanking, out: Console) -> None:
    out.print(_scores_table("each level alone", [*ranking.singles, ranking.constant]))
    out.print(_scores_table("one more at a time", ranking.steps))
    presets = list(ranking.presets.values())
    out.print(_scores_table("presets, all their levels", presets, list(ranking.presets)))
    train, validation = ranking.images
    out.print(
        f"ridge on {ranking.features} features a level; {train} pictures fitted, {validation} "
        f"scored (held out: {ranking.split})",
        highlight=False,
        soft_wrap=True,
    )
    levels = list(ranking.structural)
    structural = f"structural_levels: {levels}" if levels else "structural: false"
    out.print(
        f"proposed, for the presets {', '.join(ranking.accepting)}:\n"
        f"  semantic_levels: {list(ranking.semantic)}\n  {structural}",
        highlight=False,
    )


def _scores_table(
    title: str, scores: Sequence[LevelScore], names: Sequence[str] | None = None
) -> Table:
    table = Table(title=title, title_justify="left")
    if names is not None:
        table.add_column("")
    for name in ("levels", "RMSElog", "AbsRel", "d<1.25"):
        table.add_column(name, justify="left" if name == "levels" else "right")
    for index, score in enumerate(scores):
        levels = " ".join(map(str, score.levels)) or "(constant)"
        numbers = (score.rmse_log, score.abs_rel, score.delta1)
        first = () if names is None else (names[index],)
        table.add_row(*first, levels, *(f"{number:.4f}" for number in numbers))
    return table
