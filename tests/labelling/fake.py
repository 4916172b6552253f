"""A depth source that costs nothing, pictures to label, and what a labelled folder holds.

Depth is a function of a pixel's own colour, so that it is right for mirrored pictures, too.

Axes: H W pixels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.labelling.job import LabelJob
from clipdepth_plugin.labelling.source import (
    DepthSource,
    Label,
    Picture,
    SourceCard,
)


class FakeSource(DepthSource):
    """Metres: 0.5 + red / 50, so from 0.5 to 5.6. Inverse depth: red."""

    def __init__(self, units: Units = "metres", seconds: float = 0.0, **card: Any) -> None:
        self.card = SourceCard(
            source=f"fake:{units}", units=units, version="1", licence="MIT", **card
        )
        self.seconds, self.seen = seconds, list[Picture]()
        self.keep_seen = False

    def depth(self, red_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        return red_HW if self.card.units != "metres" else np.float32(0.5) + red_HW / np.float32(50)

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        if self.keep_seen:
            self.seen += pictures
        time.sleep(self.seconds * len(pictures))
        return [Label(self.depth(one.image_HW3[..., 0].astype(np.float32))) for one in pictures]


def fake_source() -> DepthSource:
    return FakeSource()


def slow_source() -> DepthSource:
    return FakeSource(seconds=0.01)


def job(*pictures: Any, folder: Path, **fields: Any) -> LabelJob:
    given: dict[str, Any] = {"source": fake_source, "threads": 2, **fields}
    specs = tuple(str(one) if isinstance(one, Path) else one for one in pictures)
    return LabelJob(pictures=specs, folder=folder, **given)


def picture(seed: int, size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save_tree(root: Path, names: Sequence[str]) -> Path:
    """A folder of random pictures, each of its own seed."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    return root


def hashes(root: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too -> a hash of its content."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def stored(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def frames(found: Mapping[str, str]) -> list[str]:
    """The names of the frames that have depth."""
    ends = (".depth.png", ".inverse.png")
    return sorted(
        name.rpartition(".")[0].rpartition(".")[0] for name in found if name.endswith(ends)
    )
