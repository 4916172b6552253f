"""Options that several commands share, and how they report users' mistakes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from clipdepth_plugin.cli.console import plain_console

HOST_HELP = (
    "The host: demo, open_clip:MODEL/TAG (open_clip:ViT-B-16/openai), hf:ORG/NAME "
    "(hf:google/siglip-base-patch16-224), timm:NAME, or a folder saved by one of them."
)

HostOption = Annotated[str, typer.Option("--host", metavar="HOST", help=HOST_HELP)]
HeadOption = Annotated[
    str,
    typer.Option(
        "--head",
        metavar="HEAD",
        help="The depth head: demo (for the demo host), a folder, or a hub id.",
    ),
]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)]
DeviceOption = Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")]
TowerOption = Annotated[
    str | None, typer.Option(metavar="PATH", help="Which tower, where inspect lists several.")
]


@contextlib.contextmanager
def errors_as_messages() -> Iterator[Console]:
    """A console on stderr; users' mistakes (ValueErrors) become one message and exit code 2."""
    console = plain_console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield console
    except ValueError as error:
        console.print(Text("error: ", style="bold red") + Text(str(error)), soft_wrap=True)
        raise typer.Exit(2) from error
    finally:
        root.removeHandler(handler)
