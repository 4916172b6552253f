"""distill(): labels, a training run and a report, each kept and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.distilling.labels import LabelledSet, split_labels
from clipdepth_plugin.distilling.recipe import Student, training_tree
from clipdepth_plugin.distilling.report import DistillReport, write
from clipdepth_plugin.distilling.teacher import teacher_predictor
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.evaluation.evaluate import EvaluationResult, evaluate
from clipdepth_plugin.evaluation.predictors import HeadPredictor, Predictor
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.evaluation.report import Report, make_report, write_image_grid
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.labelling.source import open_source
from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.subject import make_subject
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import dump_config, load_config
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.progress import Reporter

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.loading import Host

ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """What ``distill`` does.

    Attributes:
        labels: The labelled folder.
        student: What learns them.
        run: Folder of training run, tokens and report.
        overrides: Further fields of ``TrainConfig``, as ``clipdepth train`` takes them.
        truth: Sets with measured depth, on which teacher and student are compared.
        device: Where the report is computed.
        command: The command line, for the report.
    """

    labels: Path
    student: Student
    run: Path
    overrides: Sequence[str] = ()
    truth: Sequence[DataConfig] = ()
    device: str = "cpu"
    command: Sequence[str] = ()


def distill(
    job: Distillation,
    *,
    reporter: Reporter | None = None,
    advance: Callable[[str, int, int | None], object] = lambda *_: None,
) -> DistillReport:
    """Trains a head on labels and reports on it.

    A run that was stopped goes on by the same call. The config is written to ``train.yaml``, which
    ``clipdepth train`` takes.

    Args:
        job: What is done.
        reporter: Of the training.
        advance: Called with what is measured, pictures done since the last call, and their number.

    Raises:
        SourceError: The labels are none, or the teacher can't be opened.
        ClipDepthError: As ``train`` and ``evaluate``.
    """
    labels = split_labels(job.labels)
    config = make_config(job, labels)
    trained = train(config, resume=True, reporter=reporter)
    report, draw = _measure(job, labels, config, trained.head, advance)
    write(job.run, report, draw)
    return report


def make_config(job: Distillation, labels: LabelledSet) -> TrainConfig:
    """The training run, with the user's fields in it; it is also written to ``train.yaml``."""
    path = job.run / "train.yaml"
    tree = training_tree(labels, job.student, job.run)
    write_atomically(path, yaml.safe_dump(tree, sort_keys=False).encode())
    config = load_config(path, job.overrides)
    write_atomically(path, dump_config(config).encode())
    return config


def _measure(
    job: Distillation,
    labels: LabelledSet,
    config: TrainConfig,
    folder: Path,
    advance: Callable[[str, int, int | None], object],
) -> tuple[DistillReport, Callable[[Path], None]]:
    host = load_host(config.host)
    head = DepthHead.from_pretrained(folder).to(job.device).eval()
    plugin = DepthPlugin(
        host.model.to(job.device), head, tower=config.tower, processor=host.preprocessing
    )
    student = HeadPredictor(plugin)
    held_out = open_dataset(labels.held_out)

    def measured(predict: Predictor, data: DataConfig, what: str) -> tuple[EvaluationResult, Report]:
        dataset = open_dataset(data)
        count = len(dataset) if hasattr(dataset, "__len__") else None
        result = evaluate(
            predict,
            dataset,
            get_protocol("rgbd"),
            batch_size=8,
            advance=lambda done: advance(what, done, count),
        )
        report = make_report(
            result,
            command=tuple(job.command),
            device=job.device,
            host=config.host,
            head=str(folder),
            tower_hashes=tower_hashes(plugin.tower),
            data=data.model_dump(mode="json"),
            align="none",
        )
        return result, report

    result, agreement = measured(student, labels.held_out, "student and teacher")
    truth: dict[str, dict[Any, Report]] = {}
    if job.truth:
        teacher = teacher_predictor(open_source(labels.card.source, device=job.device))
        for data in job.truth:
            both = {"teacher": teacher, "student": student}
            truth[f"{data.title}/{data.split}"] = {
                name: measured(one, data, f"{name} and truth")[1] for name, one in both.items()
            }
    report = DistillReport(
        teacher=labels.card,
        host=config.host,
        head=str(folder),
        pictures=labels.counts,
        agreement=agreement,
        truth=truth,
        cost=_cost(host, head, config),
        environment=describe_environment(job.command, job.device),
    )
    return report, lambda path: write_image_grid(path, result, student, held_out)


def _cost(host: Host, head: DepthHead, config: TrainConfig) -> Any:
    with torch.no_grad():
        subject = make_subject(
            host.model, label=host.label, tower=config.tower, size=config.input_size
        )
        return audit(subject, {"student": head}, method=Method(rounds=ROUNDS))
