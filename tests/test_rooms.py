"""The layers (rooms) of the package: imports run downwards only, and none are circular.

A room is a folder of the package or a file beside them; ``CONTRIBUTING.md`` says what each is for.
Imports inside functions and for types alone count as all others do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "clipdepth_plugin"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("annotating", "calibrating", "distilling", "exporting"),
    ("latency", "evaluation", "training", "labelling", "serving", "app"),
    ("data",),
    ("__init__",),
    ("plugin",),
    ("shipped",),
    ("weights.spaceclip",),
    ("head",),
    ("runtime",),
    ("adapters",),
    ("geometry",),
    ("maps",),
    ("weights",),
    ("fused",),
    ("ops",),
    ("kernels",),
    ("config",),
    ("decoders",),
    ("files",),
    ("environment", "precision"),
    ("features",),
    ("head_config",),
    ("presets",),
    ("metric_calibration",),
    ("lenses",),
    ("settings",),
    ("arguments",),
    ("errors",),
)
"""From the top down. A room imports from lower floors and from itself, never from its own floor's
other rooms. ``weights`` is below the head, which saves itself; what makes heads is above it."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Name within the package -> file; adapters and kernels by their links."""
    found = {}
    for folder in (ROOT / PACKAGE, ROOT / "adapters", ROOT / "kernels"):
        base = folder if folder.name == PACKAGE else ROOT
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Names within the package of what a file imports from it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            whole = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in whole:
            if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                inner = name.removeprefix(PACKAGE).removeprefix(".")
                while inner and inner not in known:
                    inner = inner.rpartition(".")[0]
                yield inner or "__init__"


def room(module: str) -> str:
    """The room of a module: the longest name that a floor has."""
    name = module
    while name not in FLOOR_OF:
        name, _, last = name.rpartition(".")
        if not last:
            pytest.fail(f"{module} is in no room: add it to FLOORS, on the floor where it belongs")
    return name


def test_imports_run_downwards_only() -> None:
    known = modules()
    upwards = []
    for module, file in known.items():
        own = room(module)
        for target in imports(file, known):
            other = room(target)
            if other != own and FLOOR_OF[other] <= FLOOR_OF[own]:
                upwards.append(f"{module} imports {target}")
    assert not upwards, "\n".join(upwards)


def test_contributing_has_the_rooms_in_their_order() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("\n| room | contents |\n")[2].partition("\n\n")[0]
    first_cells = [line.split(" | ")[0] for line in table.splitlines()]
    paths = [path for cell in first_cells for path in re.findall(r"`([^`]+)`", cell)]
    listed = [path.removesuffix("/").removesuffix(".py").replace("/", ".") for path in paths]
    floors = [FLOOR_OF[room(one)] for one in listed]
    assert floors == sorted(floors), "the table is not in the order of FLOORS"
    missing = {one for one in FLOOR_OF if "." not in one} - set(listed)
    assert not missing, f"CONTRIBUTING.md does not name {', '.join(sorted(missing))}"


def test_no_file_imports_itself_in_a_circle() -> None:
    known = modules()
    graph = {module: {*imports(file, known)} - {module} for module, file in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_terminal_is_left_to_the_command_line() -> None:
    """What lies below cli gives values; only cli prints tables, bars and messages."""
    printing = []
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if room(module) != "cli" and any(n.split(".")[0] in ("rich", "typer") for n in names):
                printing.append(module)
    assert not printing


def test_the_readers_find_imports_of_every_form(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import clipdepth_plugin.head\n"
        "from clipdepth_plugin import attach, config\n"
        "def late():\n    from clipdepth_plugin.maps.geometry import ViewGeometry\n"
    )
    assert [*imports(file, modules())] == ["head", "__init__", "config", "maps.geometry"]
