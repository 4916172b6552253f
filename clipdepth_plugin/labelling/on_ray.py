"""The same job on Ray Data: shards of it, dealt to actors that each open the source once.

The labelled folder, and the pictures, are on a disk that all machines share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from clipdepth_plugin.data.files import require
from clipdepth_plugin.data.reading import BadFiles, Failure
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.labelling.job import LabelJob, LabelReport, Progress
from clipdepth_plugin.labelling.run import Advance, opened_source, write_labels
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import DepthSource

SHARDS_PER_ACTOR = 8
"""More even out what shards take; each of them lists the pictures."""

_Row = dict[str, Any]


Work = Callable[..., LabelReport]
"""(job, *, source) -> what was done of the job's shard; a function of a module."""


def write_labels_on_ray(
    job: LabelJob, *, actors: int, advance: Advance = lambda _: None
) -> LabelReport:
    """``write_labels`` by actors: see ``run_on_ray``."""
    limit = job.bad_file_limit
    return run_on_ray(job, write_labels, actors=actors, bad_limit=limit, advance=advance)


def run_on_ray(
    job: Any, work: Work, *, actors: int, bad_limit: int, advance: Advance = lambda _: None
) -> LabelReport:
    """A job's shards by actors of a Ray cluster, or of this machine where none is joined.

    An actor takes one CPU, and a GPU where ``job.device`` is ``cuda``. Every shard is tried; the
    error at the end names those that failed.

    Args:
        job: A ``LabelJob``, or another dataclass with ``source``, ``device``, ``shard`` and
            ``settings.dtype``; its shard is the whole.
        work: Does a shard of it.
        actors: How many work at once.
        bad_limit: Pictures that may be bad, in all.
        advance: Told after each shard, in shards.

    Raises:
        DataError: Ray is missing, or more pictures are bad than the job allows.
        SourceError: Shards failed. What they labelled stays, and the same call goes on.
    """
    ray = require("ray", "ray", "labelling on Ray")
    data = require("ray.data", "ray", "labelling on Ray")
    if job.shard != Shard():
        raise SourceError(f"shard {job.shard}: Ray deals out the shards; leave it out")
    if not ray.is_initialized():
        ray.init()
    shards = [{"shard": 1 + number} for number in range(actors * SHARDS_PER_ACTOR)]
    data.DataContext.get_current().enable_progress_bars = False  # advance tells
    rows = data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        _Labeller,
        fn_constructor_args=(job, work, len(shards)),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=actors),
        num_gpus=1 if job.device.startswith("cuda") else 0,
    )
    return _joined(rows.iter_rows(), bad_limit, len(shards), advance)


class _Labeller:
    """An actor: keeps the source, labels one shard a call."""

    def __init__(self, job: Any, work: Work, shards: int) -> None:
        self._job, self._work, self._shards = job, work, shards
        self._source: DepthSource | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (number,) = (int(one) for one in batch["shard"])
        row: _Row = {"shard": number, "error": ""}
        report = LabelReport()
        try:
            job = self._job
            self._source = self._source or opened_source(
                job.source, device=job.device, dtype=job.settings.dtype
            )
            shard = replace(job, shard=Shard(number, self._shards))
            report = self._work(shard, source=self._source)
        except Exception as error:  # noqa: BLE001 (other shards go on; the driver raises it)
            row["error"] = f"{type(error).__name__}: {error}"
        row |= {
            "labelled": report.labelled,
            "present": report.present,
            "seconds": report.seconds,
            "source_seconds": report.source_seconds,
            "empty": list(report.empty),
            "bad_names": list(report.bad),
            "bad_reasons": list(report.bad.values()),
        }
        return {key: _column(value) for key, value in row.items()}


def _column(value: Any) -> Any:
    """A batch's column of one row; lists of any length are objects."""
    column = np.empty(1, dtype=object if isinstance(value, list | str) else type(value))
    column[0] = value
    return column


def _joined(rows: Iterator[_Row], bad_limit: int, shards: int, advance: Advance) -> LabelReport:
    bad = BadFiles(bad_limit, "left out")
    failed: list[str] = []
    labelled, present, empty = 0, 0, list[str]()
    seconds = source_seconds = 0.0
    for done, row in enumerate(rows, start=1):
        labelled, present = labelled + int(row["labelled"]), present + int(row["present"])
        seconds, source_seconds = seconds + row["seconds"], source_seconds + row["source_seconds"]
        empty += list(row["empty"])
        bad.add(list(map(Failure, row["bad_names"], row["bad_reasons"])))
        if row["error"]:
            failed.append(str(row["error"]))
        advance(Progress(done, shards, labelled, len(bad.reasons)))
    if failed:
        raise SourceError(
            f"{len(failed)} of {shards} shards failed; the others are done, and the same command "
            "goes on with these:" + "".join(f"\n  {one}" for one in failed)
        )
    names = (labelled, present, tuple(empty), dict(bad.reasons), seconds, source_seconds)
    return LabelReport(*names)
