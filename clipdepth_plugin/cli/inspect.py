"""``clipdepth inspect``: the towers of a host, as a table or as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from clipdepth_plugin.cli.console import loading, print_table
from clipdepth_plugin.cli.options import HostArgument, JsonOption, RandomWeightsOption

if TYPE_CHECKING:
    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower

_FIELDS = {
    "path": "path",
    "family": "family",
    "blocks": "blocks_path",
    "depth": "depth",
    "width": "width",
    "patch": "patch_size",
    "input size": "image_size",
    "grid": "grid",
    "prefix tokens": "num_prefix_tokens",
    "context kinds": "contexts",
}
"""Row of the table -> field of the JSON and of ``Tower``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options of the command."""

    host: HostArgument
    as_json: JsonOption = False
    random_weights: RandomWeightsOption = False


def inspect_host(options: InspectOptions, console: Console) -> int:
    """List the vision towers of a host that a depth head can be attached to."""
    # What libraries print while they load must not get into the JSON.
    with loading(console, options.host), contextlib.redirect_stdout(sys.stderr):
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.adapters.towers import choose_tower, find_towers

        host = load_host(options.host, random_weights=options.random_weights)
    # If there is none, choose_tower raises the error that says what was looked for and found.
    towers = find_towers(host.model) or [choose_tower(host.model)]
    described = [describe_tower(host.model, tower, host.preprocessing) for tower in towers]
    if options.as_json:
        report = {"host": options.host, "towers": described}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        print_table(_table(options.host, described))
    return 0


def describe_tower(
    host: nn.Module, tower: Tower, processor: Preprocessing | None
) -> dict[str, Any]:
    """One tower in types that JSON has; the host's own ``processor`` goes before the tower's."""
    from clipdepth_plugin.adapters.structure import modules_around
    from clipdepth_plugin.adapters.trim import plan_trim

    preprocessing = processor or tower.preprocessing
    trim = plan_trim(host, tower)
    return {
        **{name: getattr(tower, name) for name in _FIELDS.values()},
        "has_class_token": tower.has_class_token,
        "normalisation": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "inside": [type(one).__name__ for one in modules_around(host, tower.path)],
        "token_order": tower.rule.order,
        "takes": tower.rule.takes,
        "views": [] if preprocessing is None else [str(rule) for rule in preprocessing.rules],
        "views_unknown": None if preprocessing is None else preprocessing.unknown or None,
        "trim": {"blocks": trim.blocks, "why": trim.why},
    }


def _table(host: str, towers: list[dict[str, Any]]) -> Table:
    """One column for each tower, so that long paths fit."""
    table = Table("", title=f"vision towers of {host}", title_justify="left")
    for number in range(1, len(towers) + 1):
        table.add_column(f"tower {number}", overflow="fold")
    for label, name in _FIELDS.items():
        table.add_row(label, *(_readable(tower[name]) for tower in towers))
    for name in ("mean", "std", "size", "resize", "interpolation"):
        values = ((tower["normalisation"] or {}).get(name) for tower in towers)
        table.add_row(f"host's {name}", *map(_readable, values))
    table.add_row(
        "inside", *(" > ".join(t["inside"]) or "nothing: the host itself" for t in towers)
    )
    table.add_row("token order", *(tower["token_order"] for tower in towers))
    table.add_row("takes", *(f"({', '.join(map(str, tower['takes']))})" for tower in towers))
    views = ("; ".join(t["views"]) or t["views_unknown"] or "not known" for t in towers)
    table.add_row("views", *views)
    left_out = (
        f"{', '.join(t['trim']['blocks']) or 'nothing'} left out: {t['trim']['why']}"
        for t in towers
    )
    table.add_row("trim=True", *left_out)
    return table


def _readable(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, tuple | list):
        numbers = all(isinstance(item, int) for item in value)
        return (" x " if numbers else ", ").join(map(str, value))
    return str(value) or "(the host itself)"
