"""From a dataclass of options and a function of them to a command.

A command is one file: a frozen dataclass, each field ``Annotated[type, typer.Option(...)]`` with
its default, and a function ``run(options, console) -> exit code`` whose docstring is the help.
Where it has a field ``output``, that folder is made and locked while the command runs.
``app.py`` registers it by ``add_command``. A new option is one more field.

Exit codes of every command: 0, done. 1, done in part, where the command says so. 2, a mistake in
the host, the head, the data or an option. 3, an unexpected error; ``--debug`` shows where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from clipdepth_plugin.cli.console import plain_console
from clipdepth_plugin.errors import ClipDepthError, DepthFileError
from clipdepth_plugin.files.locks import locked_folder

MISTAKE, UNEXPECTED = 2, 3
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of any error, not its message alone.")
]


def add_command(
    app: typer.Typer, run: Callable[[Any, Console], int], name: str, **settings: Any
) -> None:
    """Registers a command: ``run(options, console on stderr) -> exit code``.

    ``settings`` are more of what ``typer.Typer.command`` takes.
    """
    options = get_type_hints(run)["options"]
    types = get_type_hints(options, include_extras=True)

    def command(*, debug: bool, **given: Any) -> None:
        for field, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                hint = f"--{field.replace('_', '-')}"
                raise typer.BadParameter(f"{value} is not a finite number", param_hint=hint)
        with errors_as_messages(debug=debug) as console, _output(given.get("output")):
            code = run(options(**given), console)
        raise typer.Exit(code)

    parameters = [
        _parameter(field.name, types[field.name], field.default)
        for field in dataclasses.fields(options)
    ]
    parameters.append(_parameter("debug", DebugOption, default=False))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(name, help=inspect.getdoc(run), **settings)(command)


def _output(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """Makes the folder of the option ``output``, and keeps other commands out of it meanwhile."""
    if folder is None:
        return contextlib.nullcontext()
    return locked_folder(folder, DepthFileError, "output folder")


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


@contextlib.contextmanager
def errors_as_messages(*, debug: bool = False) -> Iterator[Console]:
    """A console on stderr; an error inside becomes a message, or a traceback, and an exit code."""
    console = plain_console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield console
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        mistake = isinstance(error, ClipDepthError | ValidationError) or _is_out_of_memory(error)
        if debug:
            console.print(traceback.format_exc())
        else:
            first = next(iter(str(error).strip().splitlines()), "no message")
            unexpected = f"{type(error).__name__}: {first}; --debug shows the traceback"
            message = str(error) if mistake else unexpected
            if _is_out_of_memory(error):
                message = f"not enough memory ({first}): take smaller batches or sizes"
            console.print(Text("error: ", style="bold red") + Text(message))
        raise typer.Exit(MISTAKE if mistake else UNEXPECTED) from error
    finally:
        root.removeHandler(handler)


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's allocator of the CPU raises a bare RuntimeError."""
    text = str(error)
    said = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)
