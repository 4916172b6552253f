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

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.towers import choose_tower, find_towers
from clipdepth_plugin.adapters.trim import plan_trim
from clipdepth_plugin.cli.console import loading, plain_console
from clipdepth_plugin.cli.options import HostArgument, JsonOption, RandomWeightsOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower

_ROWS = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options of the command."""

    host: HostArgument
    as_json: JsonOption = False
    random_weights: RandomWeightsOption = False


def inspect_host(options: InspectOptions, console: Console) -> int:
    """List the vision towers of a host that a depth head can be attached to."""
    # What libraries print while they load must not get into the JSON.
    with console.status(loading(options.host)), contextlib.redirect_stdout(sys.stderr):
        host = load_host(options.host, random_weights=options.random_weights)
    # If there is none, choose_tower raises the error that says what was looked for and found.
    towers = find_towers(host.model) or [choose_tower(host.model)]
    described = [describe_tower(host.model, tower, host.preprocessing) for tower in towers]
    if options.as_json:
        report = {"host": options.host, "towers": described}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        plain_console().print(_table(options.host, described))
    return 0


def describe_tower(
    host: nn.Module, tower: Tower, processor: Preprocessing | None
) -> dict[str, Any]:
    """One tower in types that JSON has; the host's own ``processor`` goes before the tower's."""
    preprocessing = processor or tower.preprocessing
    trim = plan_trim(host, tower)
    return {
        **{name: getattr(tower, name) for name in _ROWS.values()},
        "has_class_token": tower.has_class_token,
        "normalisation": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "inside": [type(one).__name__ for one in modules_around(host, tower.path)],
        "token_order": tower.rule.order,
        "takes": tower.rule.takes,
        "views": [] if preprocessing is None else [str(rule) for rule in preprocessing.rules],
        "views_unknown": None if preprocessing is None else preprocessing.unknown or None,
        "trim": {"blocks": trim.blocks, "why": trim.why},
    }


def _table(host: str, described: list[dict[str, Any]]) -> Table:
    """One column for each tower, so that long paths fit."""
    table = Table(title=f"vision towers of {host}", title_justify="left")
    table.add_column("")
    for index in range(len(described)):
        table.add_column(f"tower {index + 1}", overflow="fold")
    for label, name in _ROWS.items():
        table.add_row(label, *(_readable(tower[name]) for tower in described))
    for label in ("mean", "std", "size", "resize", "interpolation"):
        values = [(tower["normalisation"] or {}).get(label) for tower in described]
        table.add_row(f"host's {label}", *map(_readable, values))
    for label, of in _MORE.items():
        table.add_row(label, *(of(tower) for tower in described))
    return table


def _views(tower: dict[str, Any]) -> str:
    """The rules by which the host makes views of a picture, in the order tried."""
    return "; ".join(tower["views"]) or tower["views_unknown"] or "not known"


_MORE: dict[str, Callable[[dict[str, Any]], str]] = {
    "inside": lambda tower: " > ".join(tower["inside"]) or "nothing: the host itself",
    "token order": lambda tower: tower["token_order"],
    "takes": lambda tower: f"({', '.join(map(str, tower['takes']))})",
    "views": _views,
    "trim=True": lambda tower: (
        f"{', '.join(tower['trim']['blocks']) or 'nothing'} left out: {tower['trim']['why']}"
    ),
}


def _readable(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, tuple | list):
        numbers = all(isinstance(item, int) for item in value)
        return (" x " if numbers else ", ").join(map(str, value))
    return str(value) or "(the host itself)"
