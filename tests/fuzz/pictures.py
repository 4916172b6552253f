"""Pictures, depth maps and the folders and lists that name them.

Axes: B views, H W pixels, C colours.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.files.pictures import load_image
from tests.fuzz.fuzz import Fuzz, clear_errors
from tests.fuzz.mutate import TREES, mutated, mutated_tree

_rng = np.random.default_rng(0)
_RGB_HWC = _rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
_DEPTH_HW = _rng.integers(0, 5000, (13, 17), dtype=np.uint16)


def _stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


_image = Image.fromarray(_RGB_HWC)
_PICTURES = [
    _stored(_image, "PNG"),
    _stored(_image.convert("P"), "PNG", transparency=3),
    _stored(_image.convert("LA"), "PNG"),
    _stored(Image.fromarray(_DEPTH_HW), "PNG"),
    _stored(_image, "JPEG", exif=Image.Exif()),
    _stored(_image.convert("CMYK"), "JPEG"),
    _stored(_image, "WEBP", lossless=True),
    _stored(_image, "BMP"),
    _stored(_image, "TIFF", compression="tiff_deflate"),
    _stored(_image, "GIF"),
    _stored(_image, "PPM"),
    _stored(_image, "EPS"),
    _stored(_image, "TGA"),
]
_DEPTHS = [_stored(Image.fromarray(_DEPTH_HW), "PNG"), _stored(_image.convert("L"), "PNG")]
_CAMERA = [20.0, 20.0, 8.0, 6.0]
_META = {
    "depth_scale": 1000,
    "max_depth_m": 10.0,
    "intrinsics": {"default": _CAMERA},
    "sequences": {"train/a": {"source": "s", "intrinsics": _CAMERA}},
    "sources": {"s": {"redistributable": "yes"}},
}
_LIST = [b"/a/0.jpg a/0.depth.png 518.8579\na/0.jpg None 518.8\n", b"a/0.jpg a/0.depth.png\n"]
_VALUES = st.one_of(TREES, st.just(_CAMERA), st.lists(st.floats(), min_size=4, max_size=4))


def _picture(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "0.jpg")
        path.write_bytes(data)
        with clear_errors():
            image = load_image(path)
            assert image.mode == "RGB"
            assert np.asarray(image).shape == (image.height, image.width, 3)


def _read(config: dict[str, Any]) -> None:
    """Every sample of a set: depth in its range beside a picture of its size, a camera or none."""
    with clear_errors(ValidationError):
        data = open_dataset(DataConfig(**config))
        assert isinstance(data, SampleDataset)
        for index in range(len(data)):
            sample = data[index]
            depth_1HW = sample.depth_1HW
            assert sample.image_3HW.shape[1:] == depth_1HW.shape[1:]
            assert bool(depth_1HW.isfinite().all())
            assert float(depth_1HW.min()) >= 0
            if sample.intrinsics is not None:
                fx, fy, cx, cy = sample.intrinsics
                assert min(fx, fy) > 0
                assert all(map(math.isfinite, (fx, fy, cx, cy)))


def _set(root: Path, picture: bytes = _PICTURES[4], depth: bytes = _DEPTHS[0]) -> None:
    sequence = root / "train" / "a"
    sequence.mkdir(parents=True)
    (sequence / "0.jpg").write_bytes(picture)
    (sequence / "0.depth.png").write_bytes(depth)
    (root / "meta.json").write_text(json.dumps(_META), encoding="utf-8")


def _frame(files: tuple[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _set(Path(folder), *files)
        _read({"format": "rgbd", "root": folder})


def _json(name: str, content: Any) -> None:
    """A set with its meta.json or intrinsics.json, given as bytes or as a tree."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _set(root)
        raw = content if isinstance(content, bytes) else _dumped(content)
        (root / name).write_bytes(raw)
        _read({"format": "rgbd", "root": folder})


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode("utf-8", "surrogatepass")


def _list(drawn: tuple[bytes, str]) -> None:
    content, kind = drawn
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _set(root)
        (root / "list.txt").write_bytes(content)
        roots = {"image_root": "train", "depth_root": "train"}
        _read({"format": kind, "root": folder, "files": "list.txt", **roots})


FUZZES = (
    Fuzz("picture", mutated(_PICTURES), _picture, 250),
    Fuzz("frame", st.tuples(mutated(_PICTURES[4:5]), mutated(_DEPTHS)), _frame, 120),
    Fuzz(
        "meta.json",
        st.one_of(mutated([_dumped(_META)]), mutated_tree([_META], _VALUES)),
        lambda content: _json("meta.json", content),
        150,
    ),
    Fuzz(
        "intrinsics.json",
        st.one_of(mutated([_dumped({"0": _CAMERA})]), mutated_tree([{"0": _CAMERA}], _VALUES)),
        lambda content: _json("train/a/intrinsics.json", content),
        150,
    ),
    Fuzz("list", st.tuples(mutated(_LIST), st.sampled_from(["nyu", "kitti"])), _list, 150),
)
