"""RunRecorder: log, validations, checkpoints and the best head of a run."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from clipdepth_plugin.data.config import distinct_titles
from clipdepth_plugin.errors import ClipDepthError, TrainingError
from clipdepth_plugin.files.colours import comparison, image_grid
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.training.batches import first_pictures
from clipdepth_plugin.training.checkpoint import Checkpoint, State, read_checkpoint
from clipdepth_plugin.training.progress import silent
from clipdepth_plugin.training.trained import (
    load_model_tensors,
    load_optimiser_tensors,
    model_tensors,
    optimiser_tensors,
)
from clipdepth_plugin.training.validation import (
    RELATIVE_METRICS,
    Best,
    Validation,
    Weights,
    validate,
)
from clipdepth_plugin.weights.hub import CARD_FILE
from clipdepth_plugin.weights.tensors import load_weights

if TYPE_CHECKING:
    from torch import Tensor

    from clipdepth_plugin.training.progress import Doing
    from clipdepth_plugin.training.run_folder import RunFolder
    from clipdepth_plugin.training.session import Session
    from clipdepth_plugin.training.step import StepResult

logger = logging.getLogger(__name__)


class RunRecorder:
    """Records a run; call its methods in every process."""

    def __init__(self, session: Session, folder: RunFolder, doing: Doing = silent) -> None:
        self.folder = folder
        self.best = Best()
        self._best: dict[str, Tensor] = {}  # the weights; whole in the main process alone
        self.last_score = math.nan
        head = session.context.head
        self.select = session.context.config.select if head.metric else RELATIVE_METRICS[0]
        self.metric = "abs_rel" if head.metric else self.select
        self._shown = "AbsRel" if head.metric else "inverse_error"
        self._session = session
        self._accelerator = session.context.accelerator
        self._main = self._accelerator.is_main_process
        self._doing = doing if self._main else silent

    def start(self, *, resume: bool) -> tuple[int, int, int]:
        """Opens the folder, and loads the newest checkpoint where the run is resumed.

        Returns:
            Step, epoch and batch to continue with.
        """
        newest = [self.folder.newest() if resume and self._main else None]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(newest)
        position = (0, 0, 0)
        if newest[0] is not None:
            position = self._restore(read_checkpoint(newest[0]))
            logger.info("resuming from %s", newest[0])
        elif resume:
            logger.warning("%s has no checkpoint yet: starting from the start", self.folder.path)
        if self._main:
            self.folder.open(position[0])
            if self.best.metrics and not self._has_head():
                logger.warning("%s is missing or damaged: written again", self.folder.head)
                self._write_head()
        return position

    def log_step(
        self, step: int, epoch: int, result: StepResult, rate: float, speed: float
    ) -> None:
        """Writes a line for a step."""
        if self._main:
            record = {"step": step, "kind": "train", "epoch": epoch, "loss": result.loss}
            norm = result.gradient_norm if math.isfinite(result.gradient_norm) else None
            more = {"learning_rate": rate, "gradient_norm": norm, "images_per_second": speed}
            self.folder.write({**record, **result.terms, **more})

    def validate(self, step: int) -> None:
        """Measures raw and averaged weights, and keeps the best so far."""
        session = self._session
        if session.validation is None:
            return
        measured: dict[Weights, Validation] = {"raw": self._measure("raw")}
        if session.ema is not None:
            measured["ema"] = self._measure("ema")
        select = self.select
        weights = min(measured, key=lambda name: _order(measured[name].metrics[select]))
        score = measured[weights].metrics[select]
        self.last_score = measured[weights].metrics[self.metric]
        if self._main:
            for name, one in measured.items():
                record = {"step": step, "kind": f"validation_{name}", "images": one.images}
                self.folder.write({**record, **_finite(one.metrics)})
            self._draw(step, measured[weights])
        if not (math.isfinite(self.last_score) and math.isfinite(score)):
            logger.warning(
                "step %d: %s on the validation data is not finite: the weights have diverged, "
                "and no head is kept of them; lower optimiser.lr",
                *(step, self._shown),
            )
        elif not self.best.metrics or score < self.best.metrics.get(select, math.inf):
            metrics = measured[weights].metrics.items()
            finite = {name: value for name, value in metrics if math.isfinite(value)}
            self.best = Best(finite.get("abs_rel"), weights, step, finite)
            self._save_head()

    def save(self, step: int, epoch: int, batch: int) -> None:
        """Writes a checkpoint."""
        session = self._session
        tensors = optimiser_tensors(session.model, session.optimiser.optimizer)
        with self._weights("ema"):
            average = model_tensors(session.model) if session.ema is not None else {}
        states: list[dict[str, Tensor]] = gather_object([session.stepper.rng])
        rng = {f"{rank}|{name}": x for rank, one in enumerate(states) for name, x in one.items()}
        model = model_tensors(session.model)
        if self._main:
            scaler = self._accelerator.scaler
            state = State(
                step=step,
                epoch=epoch,
                batch=batch,
                best=self.best,
                scaler=None if scaler is None else scaler.state_dict(),
                processes=self._accelerator.num_processes,
                torch=str(torch.__version__),
                config=self.folder.fingerprint,
                samples=session.samples,
            )
            parts = {"model": model, "ema": average, "optimiser": tensors, "rng": rng}
            self.folder.checkpoints.save(Checkpoint({**parts, "best": self._best}, state))
        self._accelerator.wait_for_everyone()

    def finish(self, step: int) -> Best:
        """The best weights; the last ones are saved as the head where there was no validation."""
        if self._session.validation is None:
            self.best = Best(None, "raw" if self._session.ema is None else "ema", step)
            self._save_head()
        elif not self.best.metrics:
            raise TrainingError(
                f"{self.folder.path}: no validation gave a finite {self._shown}, so there is no "
                "head to keep: the weights have diverged; lower optimiser.lr and train again"
            )
        self._accelerator.wait_for_everyone()
        return self.best

    def _restore(self, checkpoint: Checkpoint) -> tuple[int, int, int]:
        session, state, tensors = self._session, checkpoint.state, checkpoint.tensors
        if state.config != self.folder.fingerprint:
            raise TrainingError(
                f"{self.folder.checkpoints.folder}: the checkpoint of step {state.step} is of a "
                "run with another config; put the run's own back, or start a new run (--run)"
            )
        self._check_data(state)
        if session.ema is not None:
            load_model_tensors(session.model, tensors["ema"])
            session.ema.restart()
        load_model_tensors(session.model, tensors["model"])
        load_optimiser_tensors(session.model, session.optimiser.optimizer, tensors["optimiser"])
        rank = self._accelerator.process_index
        if state.processes != self._accelerator.num_processes:
            logger.warning(
                "the checkpoint was written by %d processes, now there are %d: dropout will draw "
                "other numbers",
                state.processes,
                self._accelerator.num_processes,
            )
        for name in session.stepper.rng:
            if (stored := tensors["rng"].get(f"{rank}|{name}")) is not None:
                if (stored.dtype, stored.shape) != (torch.uint8, session.stepper.rng[name].shape):
                    raise TrainingError(f"the checkpoint's random state {name} is none")
                session.stepper.rng[name] = stored
        if state.scaler is not None and self._accelerator.scaler is not None:
            try:
                self._accelerator.scaler.load_state_dict(state.scaler)
            except (KeyError, RuntimeError, TypeError) as error:
                raise TrainingError(f"the checkpoint's loss scaler is none ({error!r})") from error
        self.best = state.best
        self._best = {name: x.clone() for name, x in tensors["best"].items()}
        return state.step, state.epoch, state.batch

    def _check_data(self, state: State) -> None:
        """Another number of samples would be another order, another length and another rate."""
        for part, now in self._session.samples.items():
            if (before := state.samples.get(part, [])) != now:
                raise TrainingError(
                    f"data.{part}: the sets have {_listed(now)} samples, and the run in "
                    f"{self.folder.path} began with {_listed(before)}; put the data back as it "
                    "was, or start a new run in another folder"
                )

    @contextlib.contextmanager
    def _weights(self, which: str) -> Any:
        """Inside, the model has its raw or its averaged weights."""
        ema = self._session.ema
        with contextlib.nullcontext() if which == "raw" or ema is None else ema.applied():
            yield

    def _measure(self, weights: str) -> Validation:
        session = self._session
        assert session.validation is not None
        with self._weights(weights):
            return validate(
                self._accelerator,
                session.model,
                session.validation,
                session.context.size,
                distinct_titles(session.context.config.data.validation),
                session.context.config.logging.pictures,
                partial(self._doing, f"validation ({weights} weights)"),
                calibrate=session.context.config.calibrate_confidence,
            )

    def _draw(self, step: int, seen: Validation) -> None:
        if (count := seen.truth.shape[0]) and (data := self._session.validation_data):
            rgb_P3HW = first_pictures(self._session.context, data, count)
            rgb_PHW3 = rgb_P3HW.permute(0, 2, 3, 1).numpy()
            maps = (seen.truth[:, 0].float().numpy(), seen.pictures[:, 0].float().numpy())
            inverse = not self._session.context.head.metric
            rows = [comparison(*row, inverse=inverse) for row in zip(rgb_PHW3, *maps, strict=True)]
            self.folder.write_pictures(step, image_grid(rows))

    def _save_head(self) -> None:
        """Keeps the best weights, which the model has now, and writes their head."""
        with self._weights(self.best.weights):
            self._best = model_tensors(self._session.model)
        if self._main:
            self._write_head()

    def _write_head(self) -> None:
        trained = self._session.context.head
        factor = self.best.metrics.get("confidence_scale", 1.0) * trained.confidence_scale
        provenance = self._session.provenance(self.best)
        fitted = trained.calibration
        record = {
            "provenance": provenance,
            "confidence_scale": min(max(factor, 1e-4), 1e4),
            "calibration": None if fitted is None else fitted.trained_further(),
        }
        head = DepthHead(trained.model_copy(update=record))
        state = {name.removeprefix("head."): x for name, x in self._best.items()}
        load_weights(head, state, "the trained weights")
        # An edited card is kept by save_pretrained, but this one is of earlier weights.
        (self.folder.head / CARD_FILE).unlink(missing_ok=True)
        head.eval().save_pretrained(self.folder.head)

    def _has_head(self) -> bool:
        if not self.folder.head.is_dir():
            return False
        try:
            DepthHead.from_pretrained(self.folder.head)
        except ClipDepthError:
            return False
        return True


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) or "no"


def _order(score: float) -> float:
    """NaN is worse than anything."""
    return math.inf if math.isnan(score) else score


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
