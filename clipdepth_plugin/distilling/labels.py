"""A labelled folder as training data: whose labels it holds, and which of its frames train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdepth_plugin.data import DataConfig, SampleDataset, open_dataset
from clipdepth_plugin.errors import DataError, SourceError
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.labelling.source import SourceCard

_META_BYTES = 16 * MIB
HELD_OUT = (
    *(f"{number}/{of}" for of in (10, 5) for number in range(1, of + 1)),
    *(f"1/{of} of each" for of in (10, 5, 4)),
)
"""Parts of the labels that may validate and be reported on, the best first; the rest trains."""

_LEAST, _MOST = 0.05, 0.3  # of the frames


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labels to train on.

    Attributes:
        root: The labelled folder.
        split: Its split.
        card: The teacher's.
        train: The part that trains.
        held_out: The part that does not: other sequences, or, where there are too few of them,
            the beginning of each.
        counts: Frames of the two.
        with_cameras: Whether only frames whose camera is known are taken, as most are known.
    """

    root: Path
    split: str
    card: SourceCard
    train: DataConfig
    held_out: DataConfig
    counts: tuple[int, int]
    with_cameras: bool


def read_card(root: Path) -> SourceCard:
    """The teacher of a labelled folder.

    Raises:
        SourceError: It holds no labels.
    """
    path = root / "meta.json"
    meta = read_json(path, SourceError, limit=_META_BYTES)
    labels = meta.get("labels") if isinstance(meta, dict) else None
    if not isinstance(labels, dict):
        raise SourceError(
            f"{path}: says of no teacher, so this is measured depth or none; train on it as it is "
            "(clipdepth train), or give a folder that clipdepth label wrote"
        )
    known = {name: labels[name] for name in SourceCard.model_fields if name in labels}
    return checked(SourceCard, known, f"{path}: labels", SourceError)


def split_labels(root: Path, split: str = "train") -> LabelledSet:
    """Parts labels in those that train and those that are held out.

    Raises:
        SourceError: The folder holds no labels.
        DataError: Its frames can't be read, or are too few.
    """
    card = read_card(root)
    fields: dict[str, Any] = {"format": "rgbd", "root": str(root), "split": split}
    frames = _frames(fields)
    known = _count({**fields, "with_camera": True}) if card.units == "metres" else 0
    with_cameras = 2 * known >= frames
    if with_cameras:
        fields["with_camera"] = True
    for fold in HELD_OUT:
        parts = [{**fields, "fold": f"{which}{fold}"} for which in ("not ", "")]
        train, held_out = (DataConfig(**part) for part in parts)
        counts = _count(parts[0]), _count(parts[1])
        if _LEAST <= counts[1] / max(sum(counts), 1) <= _MOST:
            return LabelledSet(root, split, card, train, held_out, counts, with_cameras)
    raise DataError(
        f"{root / split}: {frames} labelled pictures are too few, or their folders too unequal, to "
        "hold some out; label at least 20, in folders of alike size or all in one"
    )


def _count(fields: dict[str, Any]) -> int:
    try:
        return _frames(fields)
    except DataError:  # no frame of that kind
        return 0


def _frames(fields: dict[str, Any]) -> int:
    opened = open_dataset(DataConfig(**fields), relative=True)
    assert isinstance(opened, SampleDataset)
    return len(opened)
