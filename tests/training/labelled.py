"""Turns a tiny RGB-D folder into one that ``clipdepth label`` could have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TEACHER = {"source": "hf:org/teacher", "units": "inverse depth", "licence": "cc-by-nc-4.0"}


def copied(data: str, to: Path, meta: Mapping[str, Any] | None = None) -> Path:
    """The same set elsewhere, with other fields in meta.json; None removes one."""
    shutil.copytree(data, to)
    path = to / "meta.json"
    tree = {**json.loads(path.read_text()), **(meta or {})}
    path.write_text(json.dumps({name: one for name, one in tree.items() if one is not None}))
    return to


def relative(data: str, to: Path) -> Path:
    """The same set in relative depth: a scale and shift of each picture's own."""
    units = {"units": "inverse depth", "depth_scale": None, "max_depth_m": None, "labels": TEACHER}
    root = copied(data, to, units)
    for number, path in enumerate(sorted(root.rglob("*.depth.png"))):
        with Image.open(path) as image:
            depth_HW = np.asarray(image).astype(np.float64)
        valid_HW = depth_HW > 0
        inverse_HW = (3e6 + 4e5 * number) / np.where(valid_HW, depth_HW, 1) + 5000 * (number % 3)
        stored_HW = np.where(valid_HW, inverse_HW.clip(1, 65535), 0).astype(np.uint16)
        Image.fromarray(stored_HW).save(str(path).replace(".depth.png", ".inverse.png"))
        path.unlink()
    return root


def weighed(root: Path, value: int | None = None) -> Path:
    """Adds agreement to every frame: ``value``, or none at the left, more to the right."""
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            width, height = image.size
        row_W = np.linspace(0, 255, width) if value is None else np.full(width, value)
        agreement_HW = np.tile(row_W.astype(np.uint8), (height, 1))
        Image.fromarray(agreement_HW).save(path.with_suffix(".agreement.png"))
    return root
