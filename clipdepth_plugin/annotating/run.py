"""annotate: a LeRobot data set in, a new one with depth out.

Episodes are done one by one, each by one process, in a folder beside the new data set; what is
there is the only state. Whoever finds all of them done joins them.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from typing import Any, NamedTuple

from clipdepth_plugin.annotating.encoding import depth_encoder, depth_range
from clipdepth_plugin.annotating.episodes import EpisodeWriter, writing
from clipdepth_plugin.annotating.joining import RECORD_FILE, Join
from clipdepth_plugin.annotating.plan import Plan, check_room, make_plan
from clipdepth_plugin.annotating.settings import AnnotateJob
from clipdepth_plugin.environment import package_versions
from clipdepth_plugin.errors import ClipDepthError, DataError, DepthFileError, SourceError
from clipdepth_plugin.files.atomic import sync
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.locks import check_new, waiting_lock
from clipdepth_plugin.labelling.folder import META_FILE, check_same, claimed_folder
from clipdepth_plugin.labelling.job import LabelReport, Progress
from clipdepth_plugin.labelling.on_ray import run_on_ray
from clipdepth_plugin.labelling.run import Advance, opened_source
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import DepthSource
from clipdepth_plugin.labelling.validity import farthest

logger = logging.getLogger(__name__)

_RECORD_BYTES = 256 * MIB
_JOIN_WAIT = 24 * 3600.0
_NEW = "the new data set goes into a new folder"


class Joined(NamedTuple):
    """How far all processes are.

    Attributes:
        missing: Episodes that are not done; none where the new data set is there.
        pixels: Depth key -> pixels, those that are not known, those out of the encoder's range.
    """

    missing: list[int]
    pixels: dict[str, list[int]]


def annotate(
    job: AnnotateJob, *, source: DepthSource | None = None, advance: Advance = lambda _: None
) -> tuple[LabelReport, Joined]:
    """Does the episodes of a job, or of its shard, and joins all if none is missing then.

    Args:
        job: What is to be done.
        source: The job's, opened already.
        advance: Told how far it is, in pictures.

    Raises:
        ClipDepthError: Data set, source or folder are wrong, or an episode can't be read (all
            others are done first). What is done stays, and the same call goes on from there.
    """
    report = annotate_shard(job, source=source, advance=advance)
    return _ended(job, report)


def annotate_on_ray(
    job: AnnotateJob, *, actors: int, advance: Advance = lambda _: None
) -> tuple[LabelReport, Joined]:
    """``annotate`` by actors of a Ray cluster, or of this machine where none is joined.

    Raises:
        ClipDepthError: As ``annotate``; or Ray is missing.
    """
    make_plan(job)
    limit = 2**31 - 1  # bad episodes are named below
    work = annotate_shard
    return _ended(job, run_on_ray(job, work, actors=actors, bad_limit=limit, advance=advance))


def annotate_shard(
    job: AnnotateJob, *, source: DepthSource | None = None, advance: Advance = lambda _: None
) -> LabelReport:
    """The episodes of a job's shard, without joining; pictures are counted.

    Raises:
        ClipDepthError: As ``annotate``, but episodes that can't be read are in the report.
    """
    plan = make_plan(job)
    if not job.folder.exists():
        check_room(plan)
    if source is None:
        source = opened_source(job.source, device=job.device, dtype=job.settings.dtype)
    meta = make_meta(plan, source)
    lengths = {
        one: plan.length(one) * len(plan.cameras)
        for one in range(len(plan.frames.episodes))
        if job.shard.has_part(one)
    }
    if is_whole(job, meta):
        return LabelReport(present=sum(lengths.values()))
    check_new(job.folder, DataError, _NEW)
    with claimed_folder(job.parts, meta, job.shard):
        return _write(plan, source, lengths, advance)


def make_meta(plan: Plan, source: DepthSource) -> dict[str, Any]:
    """What the depth is and where it comes from.

    Raises:
        SourceError: The source gives no metres.
    """
    card, settings = source.card, plan.job.settings
    if card.units != "metres":
        raise SourceError(
            f"{card.source}: gives {card.units}, up to a scale and a shift, and LeRobot's depth is "
            "in metres; give a teacher, or a head, of metric depth"
        )
    ours = package_versions().get("clipdepth-plugin", "(not installed)")
    encoder = depth_encoder(settings.max_depth)
    kept = depth_range(encoder, farthest(card, encoder.depth_max))
    given = settings.model_dump(mode="json", exclude={"intrinsics_file"})
    return {
        "units": "metres",
        "max_depth_m": kept.farthest,
        "unknown_below_m": kept.known_from,
        "labels": {
            **card.model_dump(mode="json"),
            "settings": {
                **given,
                "cameras": list(plan.cameras),
                "intrinsics_of": plan.lenses.given,
                "data_set": plan.frames.name,
                "data_set_version": plan.set_version(),
            },
            "written_by": f"clipdepth-plugin {ours}, lerobot {_lerobot_version()}",
        },
    }


def is_whole(job: AnnotateJob, meta: dict[str, Any]) -> bool:
    """Whether the new data set is there.

    Raises:
        SourceError: It is, by another source or with other settings.
    """
    record = job.folder / RECORD_FILE
    if not record.is_file():
        return False
    check_same(record, meta)
    return True


def _write(
    plan: Plan, source: DepthSource, lengths: dict[int, int], advance: Advance
) -> LabelReport:
    encoder = depth_encoder(plan.job.settings.max_depth)
    kept = depth_range(encoder, farthest(source.card, encoder.depth_max))
    writer = EpisodeWriter(plan, source, encoder, kept)
    labelled, present, bad, began = 0, 0, dict[str, str](), time.perf_counter()
    total = sum(lengths.values())
    for episode, pictures in lengths.items():
        if plan.part(episode).is_dir():
            present += pictures
        else:
            try:
                labelled += writer.write(episode)
            except DataError as error:
                bad[f"episode {episode}"] = str(error)
                logger.warning("episode %d can't be read: %s", episode, error)
        advance(Progress(labelled + present, total, labelled, len(bad)))
    seconds = time.perf_counter() - began
    return LabelReport(labelled, present, (), bad, seconds, writer.source_seconds)


def _ended(job: AnnotateJob, report: LabelReport) -> tuple[LabelReport, Joined]:
    if report.bad:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in report.bad.items())
        raise DataError(
            f"{job.dataset}: {len(report.bad)} episodes can't be read; repair them, or remove them "
            "with lerobot-edit-dataset. The others are done, and the same command goes on from "
            f"there:{listed}"
        )
    return report, join(replace(job, shard=Shard()))


def join(job: AnnotateJob) -> Joined:
    """Joins the episodes, if all are done and that is not done yet.

    Raises:
        ClipDepthError: They don't fit each other, or the new data set can't be written.
    """
    plan = make_plan(job)
    lock = job.parts.with_name(f".{job.parts.name}.lock")
    with waiting_lock(lock, _JOIN_WAIT, DepthFileError):
        if not (job.folder / RECORD_FILE).is_file():
            missing = plan.missing()
            if missing:
                return Joined(missing, {})
            check_new(job.folder, DataError, _NEW)
            _join(plan)
        shutil.rmtree(job.parts, ignore_errors=True)
    record = read_json(job.folder / RECORD_FILE, DataError, limit=_RECORD_BYTES)
    return Joined([], record["pixels"])


def _join(plan: Plan) -> None:
    made = plan.job.parts / "joining"
    record = read_json(plan.job.parts / META_FILE, DataError, limit=_RECORD_BYTES)
    with writing(plan.job.folder, "the new data set"):
        shutil.rmtree(made, ignore_errors=True)
        try:
            Join(plan, made).make(record)
        except ClipDepthError:
            shutil.rmtree(made, ignore_errors=True)
            raise
        for path in made.rglob("*"):
            sync(path)
        made.replace(plan.job.folder)
        sync(plan.job.folder.absolute().parent)


def _lerobot_version() -> str:
    from importlib.metadata import version

    return version("lerobot")
