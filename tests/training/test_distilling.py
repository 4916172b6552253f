"""Distilling: labels are parted, a head is trained on them, the report says what it is worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clipdepth_plugin import DepthHead
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.distilling.labels import split_labels
from clipdepth_plugin.distilling.report import DistillReport
from clipdepth_plugin.distilling.teacher import TeacherPredictor
from clipdepth_plugin.errors import DataError, SourceError
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.labelling import source as sources
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.source import DepthSource, Label, Picture, SourceCard
from clipdepth_plugin.training.config_file import load_config
from clipdepth_plugin.training.run_folder import read_log
from tests.labelling.fake import FakeSource, job
from tests.tiny.command_line import run, words
from tests.training.conftest import write_plane
from tests.training.labelled import copied

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

SMALL = [
    *("--head.options.channels", "[8,8,8]", "--head.options.film_hidden", "8"),
    *("--batch_size", "4", "--output_size", "[16,16]", "--logging.tensorboard", "false"),
    *("--logging.pictures", "0"),
]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources ``fake:metres`` and ``fake:inverse depth``."""
    monkeypatch.setitem(sources.SOURCES, "fake", lambda units, **_: FakeSource(units))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve scenes of two pictures each, without truth."""
    folder = tmp_path / "pictures"
    for index in range(24):
        write_plane(folder / f"scene-{index // 2:02d}" / str(index), seed=index)
    for depth in folder.rglob("*.depth.png"):
        depth.unlink()
    return folder


def label_as(pictures: Path, folder: Path, *, units: Any = "metres", **card: str) -> None:
    """Labels by ``fake:UNITS``, whose card says ``card`` instead."""
    source = FakeSource(units)
    source.card = source.card.model_copy(update={"source": f"fake:{units}", **card})
    write_labels(job(pictures, folder=folder), source=source)


def distill(tiny: TinyRuns, *arguments: Any, folder: str = "run") -> Any:
    given = ("--host", tiny.host, "--preset", "fast", "--epochs", "2", *arguments)
    return run("distill", "-o", tiny.folder / folder, *given, *SMALL)


def test_a_teacher_and_pictures_give_a_head_and_a_report(tiny: TinyRuns, pictures: Path) -> None:
    truth = ("--truth", f"rgbd:{tiny.data}:test")
    teacher = ("--teacher", "fake:metres", "--pictures", pictures, "--focal-px", "40")
    result = distill(tiny, *teacher, *truth)
    assert result.exit_code == 0, result.output
    folder = tiny.folder / "run"
    report = DistillReport.model_validate_json((folder / "report.json").read_text())
    assert sum(report.pictures) == 24
    assert report.pictures[1] >= 2
    assert report.agreement is not None
    assert report.agreement.images == report.pictures[1]
    assert report.agreement.labels is not None
    assert {*report.truth} == {f"{Path(tiny.data).name}/test"}
    (both,) = report.truth.values()
    assert both["teacher"].means["none"]["abs_rel"] != both["student"].means["none"]["abs_rel"]
    assert (folder / "pictures.png").read_bytes().startswith(b"\x89PNG")
    head = DepthHead.from_pretrained(report.head)
    assert head.config.canonical_focal is not None
    assert head.config.provenance.license == "MIT"
    card = (Path(report.head) / "README.md").read_text()
    assert "fake:metres" in card
    page = (folder / "report.md").read_text()
    assert page.strip() in result.output.replace("\r", "")
    assert "| teacher |" in page
    assert load_config(folder / "train.yaml").loss.trim == 0.1


def test_the_same_command_goes_on(tiny: TinyRuns, pictures: Path) -> None:
    teacher = ("--teacher", "fake:metres", "--pictures", pictures)
    assert distill(tiny, *teacher).exit_code == 0
    log = (tiny.folder / "run" / "training" / "log.jsonl").read_text()
    (tiny.folder / "run" / "report.json").unlink()
    again = distill(tiny, *teacher)
    assert again.exit_code == 0, again.output
    assert "0 pictures labelled, 24 were there" in words(again.output)
    assert (tiny.folder / "run" / "training" / "log.jsonl").read_text() == log
    assert (tiny.folder / "run" / "report.json").exists()


def test_labels_that_are_made_already_train_in_a_new_folder(tiny: TinyRuns, pictures: Path) -> None:
    label_as(pictures, tiny.folder / "labels")
    result = distill(tiny, "--labels", tiny.folder / "labels", folder="new/run")
    assert result.exit_code == 0, result.output
    assert (tiny.folder / "new/run/report.json").exists()


def test_a_relative_teacher_gives_a_head_that_says_so(tiny: TinyRuns, pictures: Path) -> None:
    teacher = ("--teacher", "fake:inverse depth", "--pictures", pictures)
    result = distill(tiny, *teacher, "--truth", f"rgbd:{tiny.data}:test")
    assert result.exit_code == 0, result.output
    folder = tiny.folder / "run"
    report = DistillReport.model_validate_json((folder / "report.json").read_text())
    assert not DepthHead.from_pretrained(report.head).config.metric
    assert report.agreement is None
    assert report.inverse_error is not None
    (both,) = report.truth.values()
    assert all(one.relative for one in both.values())
    assert [*both["student"].means] == ["inverse"]
    kinds = {one["kind"] for one in read_log(folder / "training" / "log.jsonl")}
    assert "validation_ema" in kinds
    assert "metres" not in (folder / "report.md").read_text()


class Affine(DepthSource):
    """A teacher of relative depth that is right."""

    card = SourceCard(source="right", units="inverse depth", version="1")

    def __init__(self, truth: Mapping[str, Any], scale: float, shift: float) -> None:
        self.truth, self.scale, self.shift = truth, scale, shift

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        return [Label(self.scale / self.truth[one.name] + self.shift) for one in pictures]


@pytest.mark.parametrize(
    ("scale", "shift"), [(1, 0), (3e3, 0), (1e4, 5), (1e-3, 0), (1, -0.5), (1, 1e3), (1e-6, 0)]
)
def test_the_scale_and_shift_of_a_relative_teacher_count_for_nothing(
    tiny: TinyRuns, scale: float, shift: float
) -> None:
    samples = list(open_dataset(DataConfig(format="rgbd", root=tiny.data, split="test")))
    truth = {one.name: np.maximum(one.depth_1HW[0].numpy(), 0.5) for one in samples}
    found = evaluate(TeacherPredictor(Affine(truth, scale, shift)), samples, get_protocol("rgbd"))
    error = found.means["inverse"]["abs_rel"]
    assert error is not None
    assert error < (1e-2 if shift == 1e3 else 1e-4)  # float32 of 1000.2


def test_two_sets_of_one_name_have_a_report_each(tiny: TinyRuns, pictures: Path) -> None:
    other = copied(tiny.data, tiny.folder / "other" / Path(tiny.data).name)
    truth = [("--truth", f"rgbd:{root}:test") for root in (tiny.data, other)]
    teacher = ("--teacher", "fake:metres", "--pictures", pictures)
    result = distill(tiny, *teacher, *truth[0], *truth[1])
    assert result.exit_code == 0, result.output
    report = DistillReport.model_validate_json((tiny.folder / "run" / "report.json").read_text())
    assert [*report.truth] == [f"{number}:{Path(tiny.data).name}/test" for number in (0, 1)]


def test_without_validation_data_a_relative_head_is_reported_all_the_same(
    tiny: TinyRuns, pictures: Path
) -> None:
    teacher = ("--teacher", "fake:inverse depth", "--pictures", pictures)
    result = distill(tiny, *teacher, "--data.validation", "[]")
    assert result.exit_code == 0, result.output
    assert "not measured" in (tiny.folder / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --teacher and --pictures, or --labels"),
        (["--teacher", "fake:metres"], "give --teacher and --pictures"),
        (["--labels", "{labels}", "--teacher", "fake:metres"], "are made already"),
        (["--labels", "{truth}"], "says of no teacher"),
        (["--labels", "{labels}", "--device", "nowhere"], "nothing can be computed there"),
        (["--host", "no/such/host"], "give --teacher"),
        (["--labels", "{labels}", "--preset", "quick"], "no preset is called"),
        (["--labels", "{labels}", "--data.train", "[]"], "data.train"),
        (["--labels", "{labels}", "--truth", "rgbd:{truth}/no:test"], "no such folder"),
        (["--labels", "{labels}", "--truth", "rgbd:{truth}:later"], "no such split"),
        (["--labels", "{inverse}", "--truth", "rgbd:{inverse}:train"], "holds relative depth"),
        (["--labels", "{other}", "--truth", "rgbd:{truth}:test"], "another teacher"),
        (["--labels", "{closed}", "--truth", "rgbd:{truth}:test"], "expected KIND:WHAT"),
    ],
)
def test_what_can_not_be_distilled_is_refused(
    tiny: TinyRuns, pictures: Path, arguments: list[str], said: str
) -> None:
    states: dict[str, dict[str, Any]] = {
        "labels": {}, "inverse": {"units": "inverse depth"}, "other": {"version": "0"},
        "closed": {"source": "gone:model"},
    }  # fmt: skip
    names = [one for one in states if any(one in given for given in arguments)]
    for name in names:
        label_as(pictures, tiny.folder / name, **states[name])
    folders = {name: tiny.folder / name for name in names}
    given = [one.format(**folders, truth=tiny.data) for one in arguments]
    result = distill(tiny, *given)
    assert result.exit_code == 2, result.output
    assert said in words(result.output)
    assert not (tiny.folder / "run" / "training").exists()


@pytest.mark.parametrize(
    ("folders", "fold", "counts"),
    [
        ([24], "1/10 of each", (22, 2)),
        ([8, 8, 8], "1/5 of each", (21, 3)),
        ([4, 4, 4, 4, 4, 4], "9/10", (20, 4)),  # a whole folder
        ([16, 4, 4], "8/10", (20, 4)),
        ([2] * 10, "3/10", (18, 2)),
    ],
)
def test_few_sequences_are_parted_within(
    pictures: Path, tmp_path: Path, folders: list[int], fold: str, counts: tuple[int, int]
) -> None:
    paths = iter(sorted(pictures.rglob("*.jpg")))
    for number, count in enumerate(folders):
        folder = tmp_path / "parted" / f"f{number}"
        folder.mkdir(parents=True)
        for path in islice(paths, count):
            shutil.copy(path, folder)
    write_labels(job(tmp_path / "parted", folder=tmp_path / "labels"))
    found = split_labels(tmp_path / "labels")
    assert (found.held_out.fold, found.counts) == (fold, counts)
    assert not found.with_cameras


def test_cameras_count_where_most_are_known(pictures: Path, tmp_path: Path) -> None:
    write_labels(job(pictures, folder=tmp_path / "labels"))
    paths = sorted((tmp_path / "labels" / "train").glob("*/intrinsics.json"))
    for path in paths[1:]:
        known = {frame: [40.0, 40.0, 19.5, 15.5] for frame in json.loads(path.read_text())}
        path.write_text(json.dumps(known))
    found = split_labels(tmp_path / "labels")
    assert found.with_cameras
    assert sum(found.counts) == 22


def test_what_holds_no_labels_is_refused(tiny: TinyRuns, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="says of no teacher"):
        split_labels(Path(tiny.data))
    write_labels(job(pictures / "scene-00", folder=tmp_path / "few"))
    with pytest.raises(DataError, match="2 labelled pictures are too few"):
        split_labels(tmp_path / "few")
