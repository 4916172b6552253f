"""train(): a run from its config to its best head."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.precision import denormals_as_zero
from clipdepth_plugin.training.accelerator import make_accelerator
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.progress import Progress, Reporter, silent
from clipdepth_plugin.training.run_folder import RunFolder
from clipdepth_plugin.training.run_recorder import RunRecorder
from clipdepth_plugin.training.session import Session, check_ready, open_session
from clipdepth_plugin.training.step import learning_rate

if TYPE_CHECKING:
    from clipdepth_plugin.training.batches import FeatureBatch
    from clipdepth_plugin.training.step import StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        head: Folder of the best head.
        steps: Optimiser steps of the whole run.
        abs_rel: Its AbsRel on the validation data; None without such, or for relative depth.
        weights: Which weights it has: ``raw`` or ``ema``.
        is_main: Whether this process wrote it.
        metrics: All that its validation measured (``Validation.metrics``).
    """

    head: Path
    steps: int
    abs_rel: float | None
    weights: str
    is_main: bool
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    config: TrainConfig, *, resume: bool = False, reporter: Reporter | None = None
) -> TrainResult:
    """Trains a head on a frozen host tower.

    The same call in each process of ``accelerate launch`` is one distributed run; all of them
    must see the run's folder.

    Args:
        config: The run.
        resume: Continue from the newest checkpoint in the run's folder, or start where none was
            due yet.
        reporter: Receives the progress, in the main process.

    Returns:
        The best head and its AbsRel.

    Raises:
        TrainingError: The run can't start, continue or write; the loss is not finite.
        HostError: The host can't be loaded.
        DataError: The data can't be read.
        HeadMismatchError: The head does not fit the tower.
    """
    check_type(config, TrainConfig, "config", TrainingError)
    check_ready(config)
    folder = RunFolder(config)
    accelerator = make_accelerator(config)
    lock = folder.locked() if accelerator.is_main_process else contextlib.nullcontext()
    with lock, denormals_as_zero():
        folder.check(resume=resume)
        doing = silent if reporter is None else reporter.doing
        session = open_session(config, doing, accelerator=accelerator)
        return _Run(session, folder, reporter).go(resume=resume)


class _Run:
    """The loop over epochs and steps, with log, validation and checkpoints between steps."""

    def __init__(self, session: Session, folder: RunFolder, reporter: Reporter | None) -> None:
        self._session = session
        self._config = session.context.config
        doing = silent if reporter is None else reporter.doing
        self._recorder = RunRecorder(session, folder, doing)
        self._reporter = reporter
        self._total = session.total_steps
        self._step = self._epoch = self._batch = 0
        self._clock = time.perf_counter()

    def go(self, *, resume: bool) -> TrainResult:
        position = self._recorder.start(resume=resume)
        self._step, self._epoch, self._batch = position
        try:
            while self._step < self._total:
                self._run_epoch()
            best = self._recorder.finish(self._step)
        finally:
            self._recorder.folder.close()
        is_main = self._session.context.accelerator.is_main_process
        head = self._recorder.folder.head
        return TrainResult(head, self._step, best.abs_rel, best.weights, is_main, best.metrics)

    def _run_epoch(self) -> None:
        """Runs to the end of the epoch, or of the run."""
        source, begun_at = self._session.train, self._batch
        with contextlib.closing(source.batches(self._epoch, self._batch)) as batches:
            count = self._config.gradient_accumulation
            while self._step < self._total and len(group := list(islice(batches, count))) == count:
                self._make_step(group)
        if self._step >= self._total:
            return
        if begun_at == 0 and self._batch == 0:
            raise TrainingError(
                "data.train: an epoch has not a single batch of batch_size = "
                f"{self._config.batch_size}; use fewer samples in a batch, or more data"
            )
        self._epoch, self._batch = self._epoch + 1, 0

    def _make_step(self, group: list[FeatureBatch]) -> None:
        config = self._config
        rate = learning_rate(
            self._step,
            self._total,
            peak=config.optimiser.lr,
            final=config.schedule.final_lr,
            warmup=config.schedule.warmup,
        )
        where = f"step {self._step + 1} (epoch {self._epoch}, batch {self._batch})"
        result = self._session.stepper(group, rate, where)
        self._step += 1
        if self._session.ema is not None:
            self._session.ema.update(self._step)
        self._batch += len(group)
        speed = config.batch_size / max(time.perf_counter() - self._clock, 1e-9)
        self._after_step(result, rate, speed)
        self._clock = time.perf_counter()

    def _after_step(self, result: StepResult, rate: float, speed: float) -> None:
        """Log, validation and checkpoint, at their intervals."""
        config, step, epoch = self._config, self._step, self._epoch
        last = step == self._total
        if last or step % config.logging.every == 0:
            self._recorder.log_step(step, epoch, result, rate, speed)
        if last or step % self._session.validation_interval == 0:
            self._recorder.validate(step)
        if last or step % config.checkpoint_every == 0:
            self._recorder.save(step, epoch, self._batch)
        if self._reporter is not None and self._session.context.accelerator.is_main_process:
            score = self._recorder.last_score
            errors = {} if math.isnan(score) else {self._recorder.metric: score}
            metrics = (errors.get("abs_rel"), errors.get("inverse_error"))
            self._reporter.step(
                Progress(step, self._total, epoch, result.loss, rate, speed, *metrics)
            )
