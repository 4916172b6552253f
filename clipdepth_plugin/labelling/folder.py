"""The labelled folder: its meta.json says whose labels it holds, and labels of others are refused.

Several processes may write into one folder, each its own shard.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdepth_plugin.environment import package_versions
from clipdepth_plugin.errors import DepthFileError, SourceError, quoted
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.locks import LOCK_FILE, waiting_lock
from clipdepth_plugin.files.paths import names_in
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import SourceCard
from clipdepth_plugin.labelling.validity import depth_scale, farthest

META_FILE = "meta.json"
_META_BYTES = 16 * MIB
_WAIT = 60.0
_SHARD = ".shard-"
_UNCOMPARED = ("written_by",)


def make_meta(card: SourceCard, settings: LabelSettings) -> dict[str, Any]:
    """What meta.json says: units and provenance.

    Raises:
        SourceError: A setting does not fit the source's units.
    """
    ours = package_versions().get("clipdepth-plugin", "(not installed)")
    labels = {
        **card.model_dump(mode="json"),
        "focal": settings.focal_from,
        "settings": settings.model_dump(mode="json"),
        "written_by": f"clipdepth-plugin {ours}",
    }
    if card.units != "metres":
        if settings.max_depth is not None:
            raise SourceError(
                f"max_depth {settings.max_depth:g} m: {card.source} gives relative depth, "
                "which has no metres; leave it out"
            )
        return {"units": card.units, "labels": labels}
    far = farthest(card, settings.max_depth)
    return {"depth_scale": depth_scale(far), "max_depth_m": far, "labels": labels}


@contextlib.contextmanager
def claimed_folder(folder: Path, meta: dict[str, Any], shard: Shard) -> Iterator[None]:
    """A shard's labels alone are written into a folder by its holder, all of one meta.json.

    Writes meta.json, or checks the one that is there. That of a run that ended before its first
    label, by a mistaken option say, is replaced.

    Raises:
        SourceError: The folder holds labels of another source or with other settings, or
            something else.
        DepthFileError: It can't be made or written to, or another process has this shard now.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DepthFileError(
            f"{folder}: can't be made ({error.strerror}); give a folder that can be made and "
            "written to"
        ) from error
    with contextlib.ExitStack() as held:
        with waiting_lock(folder / LOCK_FILE, _WAIT, DepthFileError):
            _claim(folder, meta)
            path = folder / f"{_SHARD}{shard.number}-of-{shard.of}.lock"
            held.enter_context(waiting_lock(path, 0.0, DepthFileError))
        yield


def _claim(folder: Path, meta: dict[str, Any]) -> None:
    path, names = folder / META_FILE, names_in(folder, DepthFileError)
    others = [one for one in names if not one.startswith(".") and one != META_FILE]
    shards = [one for one in names if one.startswith(_SHARD)]  # of processes that were not killed
    if path.exists():
        try:
            check_same(path, meta)
            return
        except SourceError:
            if others or shards or _meta_of_labels(path) is None:
                raise
    elif others:
        raise SourceError(
            f"{folder}: holds {quoted(others[0])} and no {META_FILE} of labels; give a new or "
            "empty folder"
        )
    write_atomically(path, f"{json.dumps(meta, indent=2)}\n".encode())


def _meta_of_labels(path: Path) -> dict[str, Any] | None:
    """None: of something else."""
    there = read_json(path, SourceError, limit=_META_BYTES)
    return there if isinstance(there, dict) and isinstance(there.get("labels"), dict) else None


def check_same(path: Path, meta: dict[str, Any]) -> None:
    """Whether the meta.json that is there says the same.

    Raises:
        SourceError: It does not.
    """
    there = _meta_of_labels(path)
    if there is None:
        raise SourceError(f"{path}: is of data that clipdepth did not label; give a new folder")
    before, now = _flat(there), _flat(json.loads(json.dumps(meta)))
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise SourceError(
                f"{path}: {key} of the labels there is {quoted(before.get(key))}, and now "
                f"{quoted(now.get(key))}; go on with the same source and options, or give a new "
                "folder"
            )


def _flat(meta: dict[str, Any]) -> dict[str, Any]:
    labels = {key: one for key, one in meta["labels"].items() if key not in _UNCOMPARED}
    given = labels.pop("settings", None)
    settings = given if isinstance(given, dict) else {}
    units = {key: meta.get(key) for key in ("depth_scale", "units", "max_depth_m")}
    return {**settings, **labels, **settings, **units}  # the first that differs is what was given
