"""From a dataclass to a command: its options, its exit code, and how errors are reported."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel
from rich.console import Console
from typer.testing import CliRunner, Result

from clipdepth_plugin.cli.command import add_command
from clipdepth_plugin.errors import DataError
from tests.tiny.command_line import words

Kind = Literal["none", "ours", "config", "library", "done in part"]


class _Config(BaseModel):
    steps: int


@dataclass(frozen=True, kw_only=True)
class _Options:
    kind: Annotated[Kind, typer.Argument(help="What goes wrong.")]
    seen: Annotated[int, typer.Option(min=1, help="A number.")] = 3


def _fail(options: _Options, console: Console) -> int:
    """Fail in the way that is named."""
    console.print(f"seen {options.seen}")
    logging.getLogger("tests").warning("a warning of the library")
    match options.kind:
        case "ours":
            raise DataError("rooms[1]: no such folder")
        case "config":
            _Config.model_validate({"steps": "many"})
        case "library":
            raise ValueError("too many values to unpack\nand more")
        case "done in part":
            return 1
    return 0


def run(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    add_command(app, _fail, "fail")
    return CliRunner().invoke(app, ["fail", *arguments])


def test_fields_are_options_and_the_result_is_the_exit_code() -> None:
    done = run("none", "--seen", "5")
    assert done.exit_code == 0
    assert "seen 5" in done.stderr
    assert "a warning of the library" in done.stderr
    assert run("done in part").exit_code == 1
    assert run("none", "--seen", "0").exit_code == 2
    assert run("other").exit_code == 2
    shown = words(run("--help").stdout)
    for part in ("Fail in the way that is named", "A number.", "--debug", "[default: 3]"):
        assert part in shown


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("ours", 2, "error: rooms[1]: no such folder"),
        ("config", 2, "Input should be a valid integer"),
        (
            "library",
            3,
            "error: ValueError: too many values to unpack; --debug shows the traceback",
        ),
    ],
)
def test_an_error_is_a_message_and_a_traceback_with_debug(
    kind: Kind, code: int, message: str
) -> None:
    plain, debug = run(kind), run(kind, "--debug")
    assert plain.exit_code == debug.exit_code == code
    assert message in words(plain.stderr)
    assert "Traceback" not in plain.output
    assert "Traceback (most recent call last)" in debug.stderr
    assert "in _fail" in debug.stderr


def test_no_handler_is_left_behind() -> None:
    before = list(logging.getLogger().handlers)
    run("ours")
    run("library")
    assert logging.getLogger().handlers == before
