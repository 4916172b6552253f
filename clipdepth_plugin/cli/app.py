"""The typer application: options and their help. What the commands do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdepth_plugin.cli import bench as bench_command
from clipdepth_plugin.cli import eval as eval_command
from clipdepth_plugin.cli import train as train_command
from clipdepth_plugin.cli.options import (
    DeviceOption,
    HeadOption,
    HostArgument,
    HostOption,
    TowerOption,
    errors_as_messages,
)

app = typer.Typer(
    name="clipdepth",
    help="Metric depth from the vision tower that a model already has.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
        from clipdepth_plugin.cli.inspect import run_inspect

        run_inspect(host, as_json=as_json, random_weights=random_weights, progress=console)


@app.command()
def predict(  # noqa: PLR0913, PLR0917 (a command's options)
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures."),
    ],
    host: HostOption,
    head: HeadOption,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder to write to, made if missing."),
    ],
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write NAME.npy: float32 metres, not rounded.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in one tower pass.")] = 1,
    device: DeviceOption = "cpu",
    tower: TowerOption = None,
    focal_px: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1e6,
            help="Focal length in pixels of the pictures, for heads with a canonical camera.",
        ),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="Also write NAME.confidence.png: 8-bit, 255 is sure; as .npy, too."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that predict did not write, too.")
    ] = False,
) -> None:
    """Write depth maps of pictures.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture. Those of an earlier
    run are replaced; other files of these names (the truth of an RGB-D folder has them) only with
    --overwrite.

    Exit code: 0, all pictures are done. 1, some could not be read; they are named at the end, the
    others are done. 2, the host, the head or the input is wrong, and nothing was written; or a
    map can't be written, and those before are done. The message says which.
    """
    with errors_as_messages() as console:
        from clipdepth_plugin.cli.predict import PredictOptions, run_predict

        options = PredictOptions(
            host, head, output, npy, batch_size, device, tower, focal_px, confidence, overwrite
        )
        unreadable = run_predict(images, options, console)
    if unreadable:
        raise typer.Exit(1)


train_command.register(app)
eval_command.register(app)
bench_command.register(app)
