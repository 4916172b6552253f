"""``clipdepth train``: options, the progress bar and the summary. The work is in ``training/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipdepth_plugin.cli.options import errors_as_messages

if TYPE_CHECKING:
    from clipdepth_plugin.training import progress as training_progress

_ANY_FIELD = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command(context_settings=_ANY_FIELD)(train)


def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run, as in configs/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Train from cached tower tokens, also where CONFIG has none."),
    ] = False,
) -> None:
    """Train a depth head on a frozen host tower.

    Any field of CONFIG can be set after it: --optimiser.lr 3e-4 --data.train.0.root /data/mine.
    The same command runs on many processes: accelerate launch "$(command -v clipdepth)" train ...

    Exit code: 0, the run is done. 2, it could not start, go on or be written; the message says
    why, and --resume goes on from the last checkpoint.
    """
    with errors_as_messages() as console:
        run_train(config, context.args, resume=resume, cache=cache, console=console)


def run_train(
    path: Path, overrides: Sequence[str], *, resume: bool, cache: bool, console: Console
) -> None:
    """Reads the config, trains, and says where the head is.

    Args:
        path: The config file.
        overrides: ``--any.field value`` pairs.
        resume: Go on from the newest checkpoint.
        cache: Turn the token cache on.
        console: For the progress bar and the summary.

    Raises:
        ConfigError: The config is wrong.
        ValueError: Whatever ``train`` raises.
    """
    from clipdepth_plugin.training.config_file import load_config, with_cache
    from clipdepth_plugin.training.engine import train as train_head

    config = load_config(path, overrides)
    if cache:
        config = with_cache(config)
    with _Bar(console) as bar:
        result = train_head(config, resume=resume, reporter=bar)
    if not result.is_main:
        return
    best = "" if result.abs_rel is None else f", AbsRel {result.abs_rel:.4f} on the validation data"
    console.print(
        f"{result.steps} steps; the head ({result.weights} weights{best}) is in {result.head}",
        highlight=False,
        soft_wrap=True,
    )


class _Bar:
    """A progress bar: loss, metric, images/s and time left."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def doing(self, what: str, done: int, total: int) -> None:
        """Shows a bar of its own for what comes before the steps."""
        self._update(what, done, total, "")

    def step(self, progress: training_progress.Progress) -> None:
        """Shows a step."""
        metric = "" if progress.abs_rel is None else f"AbsRel {progress.abs_rel:.4f}  "
        numbers = f"loss {progress.loss:.4f}  {metric}{progress.images_per_second:.1f} images/s"
        self._update("steps", progress.step, progress.total, numbers)

    def _update(self, what: str, done: int, total: int, numbers: str) -> None:
        # Not before there is something to show: of many processes only one reports.
        self._progress.start()
        if what not in self._tasks:
            # Resumed runs begin in the middle; the time left counts from there.
            self._tasks[what] = self._progress.add_task(
                what, total=total, completed=max(done - 1, 0), numbers=numbers
            )
        task = self._progress.tasks[self._tasks[what]].id
        self._progress.update(task, completed=done, numbers=numbers)
