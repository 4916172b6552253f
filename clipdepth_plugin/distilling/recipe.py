"""The recipe: a training config for a labelled folder.

After Depth Anything V2 (arXiv 2406.09414): a loss on log depth with the gradient's error at several
scales, without each picture's worst tenth; labels weighed by how well the teacher agrees with
itself. Augmentation is the flip alone, which small students do without loss, so that tokens are
cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.data.augment_config import PARTS
from clipdepth_plugin.distilling.labels import LabelledSet

TRIM = 0.1
FOCAL_PX = 250.0
"""Canonical focal length, at ``FOCAL_SIZE``."""
FOCAL_SIZE = (224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """The head that is to learn.

    Attributes:
        host: As ``load_host`` takes it.
        tower: Module path, where the host has several towers.
        preset: Of the head.
        epochs: Passes over the labels.
        input_size: (H, W) of the tower's input; None: the host's own.
    """

    host: str
    tower: str | None = None
    preset: str = "guided"
    epochs: int = 20
    input_size: tuple[int, int] | None = None


def training_tree(labels: LabelledSet, student: Student, run: Path) -> dict[str, Any]:
    """The fields of ``TrainConfig`` for a labelled folder, as plain values.

    Args:
        labels: What is learnt.
        student: What learns it.
        run: Folder of the whole: the training run is ``training`` in it, tokens are ``tokens``.
    """
    metric = labels.card.units == "metres"
    compact = HeadConfig(width=1, preset=student.preset).decoder == "compact"
    options: dict[str, Any] = {"confidence": True} if metric else {"metric": False}
    if compact and metric:
        options["activation"] = "log"
    loss: dict[str, Any] = {}  # of relative depth: the defaults of such heads
    if metric:
        loss = {"silog": 1.0, "silog_mean": 0.85, "gradient": 0.5, "confidence": 0.1, "ssim": 0.0}
    if labels.with_cameras:
        options |= {"canonical_focal": FOCAL_PX, "input_size": list(FOCAL_SIZE)}
    return {
        "run": str(run / "training"),
        "host": student.host,
        "tower": student.tower,
        "input_size": None if student.input_size is None else list(student.input_size),
        "head": {"preset": student.preset, "options": options},
        "data": {
            "train": [labels.train.model_dump(mode="json", exclude_unset=True)],
            "validation": [labels.held_out.model_dump(mode="json", exclude_unset=True)],
        },
        "loss": {**loss, "trim": TRIM},
        "optimiser": {"lr": 2e-3 if compact else 3e-4, "weight_decay": 0.02},
        "epochs": student.epochs,
        "batch_size": min(32, labels.counts[0]),
        "cache": {"folder": str(run / "tokens")},
        "augment": {
            name: list(off) if isinstance(off, tuple) else off for name, off in PARTS.items()
        },
        "provenance": _provenance(labels),
    }


def _provenance(labels: LabelledSet) -> dict[str, Any]:
    card, (train, _) = labels.card, labels.counts
    licence = "of no stated licence" if card.licence is None else card.licence
    units = "metres" if card.units == "metres" else "relative depth, no metres"
    return {
        "data": [f"{train} pictures labelled by {card.source} ({licence}), version {card.version}"],
        "license": card.licence,
        "notes": (
            "## Teacher\n\n"
            f"Trained on no measured depth but on the labels of `{card.source}` ({units}). The "
            "teacher's licence binds this head; so may that of the pictures."
        ),
    }
