"""The typer application: options and their help. What the commands do is imported when they run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

app = typer.Typer(
    name="clipdepth",
    help="Metric depth from the vision tower that a model already has.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HOST_HELP = (
    "The host: demo, open_clip:MODEL/TAG (open_clip:ViT-B-16/openai), hf:ORG/NAME "
    "(hf:google/siglip-base-patch16-224), timm:NAME, or a folder saved by one of them."
)

HostOption = Annotated[str, typer.Option("--host", metavar="HOST", help=HOST_HELP)]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("clipdepth-plugin"))
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print and leave."),
    ] = False,
) -> None:
    """Metric depth from the vision tower that a model already has."""


@app.command()
def inspect(
    host: HostArgument,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Build the host from its config, without weights."),
    ] = False,
) -> None:
    """List the vision towers of a host that a depth head can be attached to."""
    with errors_as_messages() as console:
        from clipdepth_plugin._cli_inspect import run_inspect

        run_inspect(host, as_json=as_json, random_weights=random_weights, progress=console)


@app.command()
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures."),
    ],
    host: HostOption,
    head: Annotated[
        str, typer.Option("--head", metavar="HEAD", help="The depth head: a folder or a hub id.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder to write to, made if missing."),
    ],
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write NAME.npy: float32 metres, not rounded.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one tower pass.")] = 1,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    tower: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Which tower, where inspect lists several."),
    ] = None,
) -> None:
    """Write depth maps of pictures.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture.

    Exit code: 0, all pictures are done. 1, some could not be read; they are named at the end, the
    others are done. 2, nothing was written because the host, the head or the input is wrong.
    """
    with errors_as_messages() as console:
        from clipdepth_plugin._cli_predict import PredictOptions, run_predict

        options = PredictOptions(host, head, output, npy, batch_size, device, tower)
        unreadable = run_predict(images, options, console)
    if unreadable:
        raise typer.Exit(1)


def _register_others() -> None:
    """The commands that live in files of their own."""
    from clipdepth_plugin import _cli_eval, _cli_train

    _cli_train.register(app)
    _cli_eval.register(app)


@contextlib.contextmanager
def errors_as_messages() -> Iterator[Console]:
    """A console on stderr; users' mistakes (ValueErrors) become one message and exit code 2."""
    console = Console(stderr=True)
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


_register_others()
