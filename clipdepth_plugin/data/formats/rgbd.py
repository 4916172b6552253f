"""The plain RGB-D folder.

    <root>/meta.json                              depth_scale, max_depth_m, intrinsics, sequences,
                                                  units, labels
    <root>/<split>/<sequence>/<name>.jpg          RGB, any picture format
    <root>/<split>/<sequence>/<name>.depth.png    16-bit, depth_scale * metres, 0 = invalid
    <root>/<split>/<sequence>/<name>.agreement.png  8-bit, 255 * a pixel's weight; optional
    <root>/<split>/<sequence>/intrinsics.json     {"<name>": [fx, fy, cx, cy] or null}; optional

A set with ``"units": "inverse depth"`` holds relative depth: in place of ``.depth.png`` it has
``<name>.inverse.png``, 16-bit, linear in inverse depth with a scale and shift of each picture's
own, 0 = invalid. ``labels`` says that depths are a teacher's, not truth.

A frame's camera is, in this order: the config's, its entry in intrinsics.json, its sequence's in
meta.json, the set's default there, not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.config import DataConfig, register_format
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.files import (
    DepthUnit,
    SampleMaker,
    read_image,
    relative_depth,
    stored_depth,
    stored_weight,
)
from clipdepth_plugin.data.fold import Fold
from clipdepth_plugin.data.rgbd_meta import Meta
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.paths import is_folder, names_in
from clipdepth_plugin.files.pictures import (
    AGREEMENT_SUFFIX,
    DEPTH_SUFFIX,
    INVERSE_SUFFIX,
    OUR_SUFFIXES,
    SUFFIXES,
)
from clipdepth_plugin.files.problems import checked, checked_type
from clipdepth_plugin.settings import GivenCamera

_SOURCES = {None: "", True: " of redistributable sources", False: " of other sources"}
_JSON_BYTES = 16 * MIB  # a camera for each of 200,000 frames

_CAMERAS: TypeAdapter[dict[str, Intrinsics | None]] = TypeAdapter(dict[str, GivenCamera | None])


class _Frame(NamedTuple):
    folder: Path
    stem: str
    image: str | None  # name of the file; None: missing
    depth: str | None
    suffix: str
    """Of the depth map: metres or inverse depth."""
    agreement: str | None
    camera: Intrinsics | None
    own_camera: bool
    """Whether intrinsics.json has it, else meta.json."""

    @property
    def image_path(self) -> Path:
        return self.folder / (self.image or f"{self.stem}.jpg")

    @property
    def depth_path(self) -> Path:
        return self.folder / (self.depth or f"{self.stem}{self.suffix}")

    @property
    def missing(self) -> str | None:
        if self.image is not None and self.depth is not None:
            return None
        return f"{self.image_path if self.image is None else self.depth_path}: no such file"


@register_format("rgbd", reads={"crop", "fold", "redistributable", "with_camera"})
class RgbdFolder(SampleDataset):
    """A split of an RGB-D folder, sequences and frames in the order of their names."""

    def __init__(self, config: DataConfig) -> None:
        """Lists the frames; no picture is read."""
        self._config = config
        self._root = config.path("")
        self._make = SampleMaker(config)
        self._fold = None if config.fold is None else Fold.parse(config.fold)
        meta, path = self._meta(), self._root / "meta.json"
        self.units = meta.units
        self.labels = meta.teacher
        self._unit = self._unit_of(meta)
        suffix = DEPTH_SUFFIX if self.units == "metres" else INVERSE_SUFFIX
        self._frames = [
            frame
            for sequence in self._sequences(meta)
            for frame in self._part(
                _frames(sequence, suffix, meta.camera(f"{config.split}/{sequence.name}", path))
            )
            if not config.with_camera or config.intrinsics or frame.camera
        ]
        if not self._frames:
            raise DataError(
                f"{self._root / config.split}: no frames (<sequence>/<name>.jpg with "
                f"<name>{suffix}){_SOURCES[config.redistributable]}"
                f"{' whose intrinsics are known' * config.with_camera}"
                f"{f' in fold {config.fold}' * (config.fold is not None)}"
            )
        self.missing = {
            index: frame.missing for index, frame in enumerate(self._frames) if frame.missing
        }

    def __len__(self) -> int:
        return len(self._frames)

    def name(self, index: int) -> str:
        """``<set>/<split>/<sequence>/<frame>``."""
        frame = self._frames[index]
        inside = frame.folder.relative_to(self._root / self._config.split).as_posix()
        return f"{self._config.title}/{self._config.split}/{inside}/{frame.stem}"

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        frame = self._frames[index]
        depth_path = frame.depth_path
        stored_HW = stored_depth(depth_path, str(depth_path))
        if self._unit is None:
            depth_1HW = relative_depth(stored_HW, str(depth_path))
        else:
            depth_1HW = self._unit.metres(stored_HW)
        image_3HW = read_image(frame.image_path)
        weight_1HW = None
        if frame.agreement is not None:
            size = (depth_1HW.shape[1], depth_1HW.shape[2])
            weight_1HW = stored_weight(frame.folder / frame.agreement, size)
        own, common = frame.folder / "intrinsics.json", self._root / "meta.json"
        return self._make(
            image_3HW,
            depth_1HW,
            frame.camera,
            self.name(index),
            what=str(depth_path),
            camera_from=f"{own if frame.own_camera else common}, frame {frame.stem}",
            weight_1HW=weight_1HW,
            units=self.units,
        )

    def _unit_of(self, meta: Meta) -> DepthUnit | None:
        """None for relative depth."""
        if meta.depth_scale is not None:
            return DepthUnit.of(self._config, meta.depth_scale, meta.max_depth_m)
        for field in ("depth_scale", "min_depth", "max_depth"):
            if self._config.given(field):
                raise DataError(
                    f"{self._root / 'meta.json'}: units: {meta.units}: this set has no metres, so "
                    f"{field} of its config does nothing; leave it out"
                )
        return None

    def _meta(self) -> Meta:
        if not is_folder(self._root):
            raise DataError(f"{self._root}: no such folder; check the set's root")
        path = self._root / "meta.json"
        if not path.exists() and self._config.depth_scale is not None:
            return Meta(depth_scale=self._config.depth_scale)
        return checked(Meta, read_json(path, DataError, limit=_JSON_BYTES), str(path), DataError)

    def _part(self, frames: list[_Frame]) -> list[_Frame]:
        return frames if self._fold is None else self._fold.part(frames)

    def _sequences(self, meta: Meta) -> list[Path]:
        split = self._root / self._config.split
        if not is_folder(split):
            there = ", ".join(path.name for path in _folders(self._root))
            raise DataError(f"{split}: no such split; {self._root} has {there or 'no folders'}")
        fold = self._fold
        found = [one for one in _folders(split) if fold is None or fold.takes(one.name)]
        wanted = self._config.redistributable
        if wanted is None:
            return found
        path, split_name = self._root / "meta.json", self._config.split
        free = [one for one in found if meta.is_free(f"{split_name}/{one.name}", path)]
        if wanted and found and not free:
            raise DataError(
                f"{path}: says of no sequence of {split_name} that it, or its source, is "
                "redistributable; leave out redistributable"
            )
        return free if wanted else [one for one in found if one not in free]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; also those that may not be entered, to be named."""
    paths = (folder / name for name in names_in(folder, DataError))
    return [path for path in paths if is_folder(path)]


def _frames(folder: Path, suffix: str, camera: Intrinsics | None) -> list[_Frame]:
    """The frames of a sequence; ``suffix`` is that of its depth maps.

    One that lacks its picture or depth is listed all the same, so that it is named.
    """
    names = [name for name in names_in(folder, DataError) if not name.startswith(".")]
    images: dict[str, str] = {}
    depths: dict[str, str] = {}
    agreements: dict[str, str] = {}
    for name in names:
        if name.lower().endswith(suffix):
            depths[name[: -len(suffix)]] = name
        elif name.lower().endswith(AGREEMENT_SUFFIX):
            agreements[name[: -len(AGREEMENT_SUFFIX)]] = name
        elif name.lower().endswith(SUFFIXES) and not name.lower().endswith(OUR_SUFFIXES):
            other = images.setdefault(name.rpartition(".")[0], name)
            if other != name:
                raise DataError(
                    f"{folder / other} and {folder / name}: are two pictures of one frame; remove "
                    "the one that its depth is not of"
                )
    stems = images.keys() | depths.keys()
    cameras = _cameras(folder / "intrinsics.json") if "intrinsics.json" in names else None
    if cameras is not None and stems - cameras.keys():
        first = min(stems - cameras.keys())
        raise DataError(
            f"{folder / 'intrinsics.json'}: has no entry for frame {first}; give [fx, fy, cx, cy], "
            "or null where it is not known"
        )
    return [
        _Frame(
            folder,
            stem,
            images.get(stem),
            depths.get(stem),
            suffix,
            agreements.get(stem),
            camera if cameras is None else cameras[stem],
            own_camera=cameras is not None,
        )
        for stem in sorted(stems)
    ]


def _cameras(path: Path) -> dict[str, Intrinsics | None]:
    tree = read_json(path, DataError, limit=_JSON_BYTES)
    return checked_type(_CAMERAS, tree, str(path), DataError)
