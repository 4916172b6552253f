"""The plain RGB-D folder.

    <root>/meta.json                              depth_scale, max_depth_m, intrinsics, sequences
    <root>/<split>/<sequence>/<name>.jpg          RGB, any picture format
    <root>/<split>/<sequence>/<name>.depth.png    16-bit, depth_scale * metres, 0 = invalid
    <root>/<split>/<sequence>/intrinsics.json     {"<name>": [fx, fy, cx, cy] or null}; optional

A frame's camera is, in this order: the config's, its entry in intrinsics.json, its sequence's in
meta.json, the set's default there, not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from clipdepth_plugin.arguments import GivenCamera, GivenMetres, Intrinsics
from clipdepth_plugin.data.augment import mixed_seed
from clipdepth_plugin.data.config import DataConfig, register_format
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.files import DepthUnit, SampleMaker, read_image, stored_depth
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.paths import is_folder, names_in
from clipdepth_plugin.files.pictures import DEPTH_SUFFIX, OUR_SUFFIXES, SUFFIXES
from clipdepth_plugin.files.problems import checked, checked_type

_SOURCES = {None: "", True: " of redistributable sources", False: " of other sources"}
_JSON_BYTES = 16 * MIB  # a camera for each of 200,000 frames

_CAMERA: TypeAdapter[Intrinsics] = TypeAdapter(GivenCamera)
_CAMERAS: TypeAdapter[dict[str, Intrinsics | None]] = TypeAdapter(dict[str, GivenCamera | None])


class _Sequence(BaseModel):
    model_config = ConfigDict(frozen=True)  # meta.json may say more
    source: str | None = None
    redistributable: str | None = None
    intrinsics: GivenCamera | None = None


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True)
    redistributable: str = ""


class Meta(BaseModel):
    """What is read of meta.json; it may hold more."""

    model_config = ConfigDict(frozen=True)

    depth_scale: GivenMetres
    max_depth_m: GivenMetres | None = None
    intrinsics: dict[str, Any] = Field(default_factory=dict)
    sequences: dict[str, Any] = Field(default_factory=dict)  # "<split>/<sequence>" -> its entry
    sources: dict[str, _Source] = Field(default_factory=dict)

    def is_free(self, sequence: str, path: Path) -> bool:
        """Whether ``<split>/<sequence>``, or else its source, is so without conditions."""
        own = self._sequence(sequence, path)
        source = self.sources.get(own.source or "", _Source())
        return (own.redistributable or source.redistributable) == "yes"

    def camera(self, sequence: str, path: Path) -> Intrinsics | None:
        """The camera of ``<split>/<sequence>``; its own null says that it is not known.

        Raises:
            DataError: It is none; names the file, ``path``, and the key.
        """
        own = self._sequence(sequence, path)
        if "intrinsics" in own.model_fields_set:
            return own.intrinsics
        default, where = self.intrinsics.get("default"), f"{path}: intrinsics.default"
        return None if default is None else checked_type(_CAMERA, default, where, DataError)

    def _sequence(self, name: str, path: Path) -> _Sequence:
        where = f"{path}: sequences, {name}"
        return checked(_Sequence, self.sequences.get(name, {}), where, DataError)


class _Frame(NamedTuple):
    folder: Path
    stem: str
    image: str | None  # name of the file; None: missing
    depth: str | None
    camera: Intrinsics | None
    own_camera: bool
    """Whether intrinsics.json has it, else meta.json."""

    @property
    def image_path(self) -> Path:
        return self.folder / (self.image or f"{self.stem}.jpg")

    @property
    def depth_path(self) -> Path:
        return self.folder / (self.depth or f"{self.stem}{DEPTH_SUFFIX}")

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
        meta, path = self._meta(), self._root / "meta.json"
        self._unit = DepthUnit.of(config, meta.depth_scale, meta.max_depth_m)
        self._frames = [
            frame
            for sequence in self._sequences(meta)
            for frame in _frames(sequence, meta.camera(f"{config.split}/{sequence.name}", path))
            if not config.with_camera or config.intrinsics or frame.camera
        ]
        if not self._frames:
            raise DataError(
                f"{self._root / config.split}: no frames (<sequence>/<name>.jpg with "
                f"<name>{DEPTH_SUFFIX}){_SOURCES[config.redistributable]}"
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
        depth_1HW = self._unit.metres(stored_depth(depth_path, str(depth_path)))
        image_3HW = read_image(frame.image_path)
        own, common = frame.folder / "intrinsics.json", self._root / "meta.json"
        return self._make(
            image_3HW,
            depth_1HW,
            frame.camera,
            self.name(index),
            what=str(depth_path),
            camera_from=f"{own if frame.own_camera else common}, frame {frame.stem}",
        )

    def _meta(self) -> Meta:
        if not is_folder(self._root):
            raise DataError(f"{self._root}: no such folder; check the set's root")
        path = self._root / "meta.json"
        if not path.exists() and self._config.depth_scale is not None:
            return Meta(depth_scale=self._config.depth_scale)
        return checked(Meta, read_json(path, DataError, limit=_JSON_BYTES), str(path), DataError)

    def _sequences(self, meta: Meta) -> list[Path]:
        split = self._root / self._config.split
        if not is_folder(split):
            there = ", ".join(path.name for path in _folders(self._root))
            raise DataError(f"{split}: no such split; {self._root} has {there or 'no folders'}")
        fold = self._config.fold
        found = [one for one in _folders(split) if fold is None or _is_in(one.name, fold)]
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


def _is_in(sequence: str, fold: str) -> bool:
    number, of = map(int, fold.removeprefix("not ").split("/"))
    return (mixed_seed("fold", sequence) % of == number - 1) != fold.startswith("not ")


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; also those that may not be entered, to be named."""
    paths = (folder / name for name in names_in(folder, DataError))
    return [path for path in paths if is_folder(path)]


def _frames(folder: Path, camera: Intrinsics | None) -> list[_Frame]:
    """The frames of a sequence.

    One that lacks its picture or depth is listed all the same, so that it is named.
    """
    names = [name for name in names_in(folder, DataError) if not name.startswith(".")]
    images: dict[str, str] = {}
    depths: dict[str, str] = {}
    for name in names:
        if name.lower().endswith(DEPTH_SUFFIX):
            depths[name[: -len(DEPTH_SUFFIX)]] = name
        elif name.lower().endswith(SUFFIXES) and not name.lower().endswith(OUR_SUFFIXES):
            images[name.rpartition(".")[0]] = name
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
            camera if cameras is None else cameras[stem],
            own_camera=cameras is not None,
        )
        for stem in sorted(stems)
    ]


def _cameras(path: Path) -> dict[str, Intrinsics | None]:
    tree = read_json(path, DataError, limit=_JSON_BYTES)
    return checked_type(_CAMERAS, tree, str(path), DataError)
