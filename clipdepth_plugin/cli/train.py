"""``clipdepth train``: options, progress and the summary. The work is in ``training/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clipdepth_plugin.cli.long_work import LongWork

if TYPE_CHECKING:
    from clipdepth_plugin.training.progress import Progress

TAKES_ANY_FIELD = {"ignore_unknown_options": True}
"""Settings of the command: unknown options are passed on as ``overrides``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of the command."""

    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run, as in configs/.")]
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--FIELD VALUE]...", help="Fields of CONFIG to set."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")
    ] = False
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Train from cached tower tokens, also where CONFIG has none."),
    ] = False


def train(options: TrainOptions, console: Console) -> int:
    """Train a depth head on a frozen host tower.

    Any field of CONFIG can be set after it: --optimiser.lr 3e-4 --data.train.0.root /data/mine.
    The same command runs on many processes: accelerate launch "$(command -v clipdepth)" train ...

    Exit code: 0, the run is done. 2, it could not start, go on or be written; the message says
    why, and --resume goes on from the last checkpoint. 3, an unexpected error.
    """
    from clipdepth_plugin.training.config_file import load_config, with_cache
    from clipdepth_plugin.training.engine import train as train_head

    config = load_config(options.config, options.overrides or ())
    if options.cache:
        config = with_cache(config)
    with TrainingReport(console) as report:
        result = train_head(config, resume=options.resume, reporter=report)
    if result.is_main:
        score = "" if result.abs_rel is None else f", AbsRel {result.abs_rel:.4f} in validation"
        if (relative := result.metrics.get("inverse_error")) is not None:
            score = f", relative depth, inverse error {relative:.4f} in validation"
        console.print(
            f"{result.steps} steps; the head ({result.weights} weights{score}) is in {result.head}"
        )
    return 0


class TrainingReport(LongWork):
    """Loss, metric, images/s and time left: a reporter of ``train()``."""

    def doing(self, what: str, done: int, total: int) -> None:
        """Shows ``what`` on its own."""
        self.at(what, done, total)

    def step(self, progress: Progress) -> None:
        """Shows a step."""
        metric = "" if progress.abs_rel is None else f"AbsRel {progress.abs_rel:.4f}  "
        if progress.inverse_error is not None:
            metric = f"inverse error {progress.inverse_error:.4f}  "
        numbers = f"loss {progress.loss:.4f}  {metric}{progress.images_per_second:.1f} images/s"
        self.at("steps", progress.step, progress.total, numbers)
