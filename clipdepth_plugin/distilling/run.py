"""distill(): labels, a training run and a report, each kept and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import torch

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import LoadedHost, load_host
from clipdepth_plugin.data import DataConfig, SampleDataset, open_dataset
from clipdepth_plugin.data.config import distinct_titles
from clipdepth_plugin.distilling.labels import LabelledSet, split_labels
from clipdepth_plugin.distilling.recipe import Student, training_tree
from clipdepth_plugin.distilling.report import DistillReport, write
from clipdepth_plugin.distilling.teacher import TeacherPredictor
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.errors import ConfigError, SourceError, printable
from clipdepth_plugin.evaluation.evaluate import EvaluationResult, evaluate
from clipdepth_plugin.evaluation.predictors import HeadPredictor, Predictor
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.evaluation.report import Report, make_report, write_image_grid
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.labelling.source import DepthSource, SourceCard, open_source
from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.processed import needed_processor
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.subject import make_subject
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import dump_config, with_fields
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.progress import Reporter

ROUNDS, BATCH = 12, 8
RECIPE = "the recipe"
"""What messages call the config."""
Advance = Callable[[str, int, int | None], object]
"""(what is measured, pictures done, their number)."""


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
    advance: Advance = lambda *_: None,
) -> DistillReport:
    """Trains a head on labels and reports on it.

    A run that was stopped goes on by the same call. The config is written to ``train.yaml``, which
    ``clipdepth train`` takes.

    Args:
        job: What is done.
        reporter: Of the training.
        advance: Called while it is measured.

    Raises:
        SourceError: The labels are none, or the teacher can't be opened.
        ClipDepthError: As ``train`` and ``evaluate``.
    """
    labels = split_labels(job.labels)
    teacher = _teacher(labels.card, job)
    config = make_config(job, labels)
    trained = train(config, resume=Path(config.run).exists(), reporter=reporter)
    measuring = _Measuring.of(job, config, trained.head, advance)
    agreement = None
    if labels.card.units == "metres":
        agreement = measuring.agreement(labels.held_out, job.run / "pictures.png")
    report = DistillReport(
        teacher=labels.card,
        host=config.host,
        head=str(trained.head),
        pictures=labels.counts,
        agreement=agreement,
        inverse_error=trained.metrics.get("inverse_error"),
        truth=measuring.truth(teacher, job.truth),
        cost=measuring.cost(),
        environment=describe_environment(job.command, job.device),
    )
    write(job.run, report)
    return report


def check_job(job: Distillation) -> None:
    """Refuses a student that can't be trained, and truth, before hours of labelling.

    Raises:
        ConfigError: Of the student's fields.
        DataError: The truth can't be opened, or is no truth.
        HostError: The host can't be loaded.
        TowerNotFoundError: It has no such tower.
    """
    for truth in job.truth:
        open_dataset(truth)
    data = DataConfig(format="rgbd", root=str(job.labels))
    card = SourceCard(source="", units="metres", version="")
    labels = LabelledSet(job.labels, "train", card, data, data, (1, 1), with_cameras=True)
    config = with_fields(training_tree(labels, job.student, job.run), job.overrides, RECIPE)
    DepthHead.for_host(load_host(config.host).model, job.student.preset, tower=config.tower)


def make_config(job: Distillation, labels: LabelledSet) -> TrainConfig:
    """The training run, with the user's fields in it; it is also written to ``train.yaml``."""
    tree = training_tree(labels, job.student, job.run)
    config = with_fields(tree, job.overrides, RECIPE)
    with new_files(job.run, ConfigError) as folder:
        (folder / "train.yaml").write_bytes(dump_config(config).encode())
    return config


def _teacher(card: SourceCard, job: Distillation) -> DepthSource | None:
    """The teacher, where it is to be measured: the one that labelled, before hours of training.

    Raises:
        SourceError: It can't be opened, or is in another state by now.
    """
    if not job.truth:
        return None
    teacher = open_source(card.source, device=job.device)
    if (found := teacher.card.version) != card.version:
        raise SourceError(
            f"{card.source}: labelled {printable(job.labels)} as version {card.version} and is "
            f"{found} now, so that the truth would measure another teacher; give back the old "
            "one, label anew, or leave out --truth"
        )
    return teacher


@dataclass(frozen=True)
class _Measuring:
    """The student on its host, ready to be measured."""

    job: Distillation
    config: TrainConfig
    host: LoadedHost
    plugin: DepthPlugin
    head: DepthHead
    folder: Path
    advance: Advance

    @classmethod
    def of(cls, job: Distillation, config: TrainConfig, folder: Path, advance: Advance) -> Self:
        """Loads both."""
        host = load_host(config.host)
        student = DepthHead.from_pretrained(folder).to(job.device).eval()
        model = host.model.to(job.device)
        plugin = DepthPlugin(model, student, tower=config.tower, processor=host.preprocessing)
        return cls(job, config, host, plugin, student, folder, advance)

    def agreement(self, held_out: DataConfig, path: Path) -> Report:
        """With the teacher's labels; draws some pictures."""
        predict = HeadPredictor(self.plugin)
        result, report = self._measured(predict, held_out, "student and teacher")
        write_image_grid(path, result, predict, open_dataset(held_out))
        return report

    def truth(
        self, teacher: DepthSource | None, sets: Sequence[DataConfig]
    ) -> dict[str, dict[str, Report]]:
        """Teacher and student against measured depth."""
        if teacher is None:
            return {}
        both: dict[str, Predictor] = {
            "teacher": TeacherPredictor(teacher),
            "student": HeadPredictor(self.plugin),
        }
        return {
            name: {
                who: self._measured(one, data, f"{who} on {name}")[1] for who, one in both.items()
            }
            for name, data in zip(distinct_titles(sets, split=True), sets, strict=True)
        }

    def cost(self) -> Audit:
        """What the student adds to its host."""
        with torch.no_grad():
            subject = make_subject(
                self.host.model,
                label=self.host.label,
                tower=self.config.tower,
                size=self.config.input_size,
                processor=needed_processor(self.host, self.plugin.tower),
            )
            return audit(subject, {"student": self.head}, method=Method(rounds=ROUNDS))

    def _measured(
        self, predict: Predictor, data: DataConfig, what: str
    ) -> tuple[EvaluationResult, Report]:
        dataset, done = open_dataset(data), count()
        total = len(dataset) if isinstance(dataset, SampleDataset) else None
        result = evaluate(
            predict,
            dataset,
            get_protocol("rgbd"),
            batch_size=BATCH,
            advance=lambda new: [self.advance(what, next(done) + 1, total) for _ in range(new)],
        )
        report = make_report(
            result,
            command=tuple(self.job.command),
            device=self.job.device,
            host=self.config.host,
            head=str(self.folder),
            tower_hashes=tower_hashes(self.plugin.tower),
            data=data.model_dump(mode="json"),
            align=result.alignments[0],
        )
        return result, report
