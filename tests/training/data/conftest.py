"""Tiny synthetic sets in every format.

Frame number n has depth 1 + n/10 metres, a little more to the right, and a hole; its picture is
smooth and its mean tells n.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import (
    DataConfig,
    EpochPlan,
    Reading,
    ViewMaker,
    make_loader,
    open_mixture,
)
from clipdepth_plugin.data.loader import Loader
from clipdepth_plugin.data.stream_loader import StreamLoader

SIZE = (24, 32)
CAMERA = (30.0, 31.0, 15.5, 11.5)
DATE = "2011_09_26"


def depth_of(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.float32]:
    """(H, W) metres in whole millimetres."""
    millimetres_W = 1000 + 100 * number + np.arange(size[1])
    depth_HW = np.tile(millimetres_W.astype(np.float32) / 1000, (size[0], 1))
    depth_HW[2:5, 3:6] = 0
    return depth_HW.astype(np.float32)


def picture_of(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    y_HW, x_HW = np.mgrid[: size[0], : size[1]]
    rgb_HW3 = np.stack([x_HW * 2, y_HW * 2, np.full(size, 10 * number)], axis=-1)
    return Image.fromarray(rgb_HW3.astype(np.uint8))


def write_frame(
    image: Path, depth: Path, number: int, scale: float, size: tuple[int, int] = SIZE
) -> None:
    for path in (image, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture_of(number, size).save(image, quality=95)
    stored_HW = np.rint(depth_of(number, size) * scale).astype(np.uint16)
    Image.fromarray(stored_HW).save(depth)


def encoded(number: int) -> tuple[bytes, bytes]:
    """The picture as PNG, and the depth as 16-bit PNG in millimetres."""
    image, depth = io.BytesIO(), io.BytesIO()
    picture_of(number).save(image, "png")
    Image.fromarray(np.rint(depth_of(number) * 1000).astype(np.uint16)).save(depth, "png")
    return image.getvalue(), depth.getvalue()


@dataclass(frozen=True)
class Trees:
    """Writes sets below a folder."""

    folder: Path

    def rgbd(
        self,
        name: str = "rooms",
        *,
        count: int = 6,
        split: str = "train",
        meta: Mapping[str, Any] | None = None,
        cameras: bool = False,
        **options: Any,
    ) -> DataConfig:
        """``count`` frames in two sequences."""
        root = self.folder / name
        for number in range(count):
            frame = root / split / "ab"[number * 2 // count] / f"{number:03d}"
            write_frame(
                frame.with_suffix(".png"), frame.with_suffix(".depth.png"), number, scale=1000
            )
        if cameras:
            for sequence in (root / split).iterdir():
                stems = {path.name.partition(".")[0] for path in sequence.glob("*.depth.png")}
                values = {stem: [30.0 + int(stem), 31.0, 15.5, 11.5] for stem in stems}
                (sequence / "intrinsics.json").write_text(json.dumps(values))
        default = {"depth_scale": 1000, "intrinsics": {"default": CAMERA}, "sequences": {split: 2}}
        (root / "meta.json").write_text(json.dumps({**default, **(meta or {})}))
        return DataConfig(format="rgbd", root=str(root), split=split, **options)

    def nyu(self, *, count: int = 4, focal: str = "518.8579", **options: Any) -> DataConfig:
        """A BTS list over a sync folder, with leading slashes as BTS writes them."""
        root, lines = self.folder / "nyu", []
        for number in range(count):
            rgb, depth = f"bathroom/rgb_{number:05d}.jpg", f"bathroom/sync_depth_{number:05d}.png"
            write_frame(root / rgb, root / depth, number, scale=1000)
            lines.append(f"/{rgb} /{depth} {focal}")
        (root / "list.txt").write_text("\n".join(lines) + "\n")
        return DataConfig(format="nyu", root=str(root), files="list.txt", **options)

    def kitti(
        self,
        *,
        count: int = 4,
        size: tuple[int, int] = SIZE,
        calibration: bool = True,
        suffix: str = ".png",
        part: str = "",
        **options: Any,
    ) -> DataConfig:
        """Raw drive and annotated depth; line 1 of the list has no depth."""
        root, drive = self.folder / "kitti", f"{DATE}_drive_0001_sync"
        lines = [f"{DATE}/{drive}/image_02/data/none.png None 721.5377"]
        for number in range(count):
            rgb = f"{DATE}/{drive}/image_02/data/{number:010d}"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{number:010d}.png"
            write_frame(
                root / "raw" / (rgb + suffix), root / "depth" / part / depth, number, 256, size
            )
            lines.append(f"{rgb}.png {depth} 721.5377")
        if calibration:
            (root / "raw" / DATE / "calib_cam_to_cam.txt").write_text(
                "calib_time: 09-Jan-2012 13:57:47\n"
                "S_rect_02: 1.242000e+03 3.750000e+02\n"
                "P_rect_02: 7.2e+02 0 6.1e+02 4.4e+01 0 7.2e+02 1.7e+02 2.1e-01 0 0 1 2.7e-03\n"
            )
        (root / "eigen.txt").write_text("\n".join(lines))
        places = {"image_root": "raw", "depth_root": "depth"}
        return DataConfig(
            format="kitti", root=str(root), files="eigen.txt", **{**places, **options}
        )

    def tar(
        self, *, shards: int = 2, each: int = 4, depth: str = "depth.png", **options: Any
    ) -> DataConfig:
        """WebDataset shards; frames count on over the shards."""
        folder = self.folder / "shards"
        folder.mkdir(exist_ok=True)
        for shard in range(shards):
            with tarfile.open(folder / f"train-{shard:02d}.tar", "w") as tar:
                for number in range(shard * each, (shard + 1) * each):
                    image, stored = encoded(number)
                    _add(tar, f"{number:03d}.png", image)
                    _add(tar, f"{number:03d}.{depth}", stored)
                    _add(tar, f"{number:03d}.intrinsics.json", json.dumps(CAMERA).encode())
        root = f"{folder}/train-{{00..{shards - 1:02d}}}.tar"
        return DataConfig(format="webdataset", root=root, **{"depth_scale": 1000, **options})


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """Writes tiny sets."""
    return Trees(tmp_path)


@pytest.fixture
def truth() -> Callable[..., NDArray[np.float32]]:
    """Depth of frame n in metres."""
    return depth_of


@pytest.fixture
def squash() -> Preprocessing:
    """A host that squashes to 16 x 16."""
    return Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (16, 16), "squash")


def make(data: Any, preprocessing: Preprocessing, **options: Any) -> Loader | StreamLoader:
    """``make_loader`` of configs or an opened set, with options by name."""
    given = {"batch_size": 2, "seed": 3, "epoch": 1, "augment": None, **options}
    seed, augment = given["seed"], given.pop("augment")
    reading = {"workers", "bad_file_limit", "pin_memory"} & given.keys()
    read = Reading(**{name: given.pop(name) for name in reading})
    opened = (
        open_mixture(data, bad_file_limit=read.bad_file_limit) if isinstance(data, list) else data
    )
    maker = ViewMaker(preprocessing, (12, 20), augment, seed)
    return make_loader(opened, maker, EpochPlan(**given), read)
