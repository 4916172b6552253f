"""The application ``clipdepth``: the list of its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from clipdepth_plugin.cli.annotate import annotate_set
from clipdepth_plugin.cli.app_page import serve_page
from clipdepth_plugin.cli.bench import run_bench
from clipdepth_plugin.cli.calibrate import calibrate_head
from clipdepth_plugin.cli.command import add_command
from clipdepth_plugin.cli.distill import distill
from clipdepth_plugin.cli.eval import evaluate_head
from clipdepth_plugin.cli.export import export_files
from clipdepth_plugin.cli.inspect import inspect_host
from clipdepth_plugin.cli.label import label
from clipdepth_plugin.cli.layers import rank_layers
from clipdepth_plugin.cli.predict import predict
from clipdepth_plugin.cli.train import TAKES_ANY_FIELD, train

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
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Metric depth from the vision tower that a model already has."""


add_command(app, inspect_host, "inspect")
add_command(app, predict, "predict")
add_command(app, label, "label")
add_command(app, annotate_set, "annotate")
add_command(app, train, "train", context_settings=TAKES_ANY_FIELD)
add_command(app, distill, "distill", context_settings=TAKES_ANY_FIELD)
add_command(app, evaluate_head, "eval")
add_command(app, rank_layers, "layers")
add_command(app, calibrate_head, "calibrate")
add_command(app, export_files, "export")
add_command(app, run_bench, "bench")
add_command(app, serve_page, "app")
