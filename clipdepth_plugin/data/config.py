"""DataConfig: which data, in one of the registered formats; checked on construction."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from os import path as ospath
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from clipdepth_plugin.data.augment_config import AugmentConfig
from clipdepth_plugin.data.fold import Fold
from clipdepth_plugin.data.sample import Crop
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.settings import Count, GivenCamera, GivenMetres, GivenNearest, Idle, Settings

Weighing = Annotated[float, Field(gt=0.0, le=1e4)]
_Set = TypeVar("_Set", bound=type)


@dataclass(frozen=True)
class Format:
    """A way in which data sets are stored.

    Attributes:
        open: ``DataConfig`` -> ``SampleDataset``, or ``StreamDataset`` where ``streams``, which
            takes ``with_depth``, too.
        streams: Whether the set is read front to back, not by number.
        reads: The fields of ``DataConfig`` that it reads beside those that every format reads.
        needs: The fields that have to be given.
        check: Raises a ValueError for a config that this format can't be opened with.
    """

    open: Callable[..., Any]
    streams: bool
    reads: frozenset[str]
    needs: frozenset[str]
    check: Callable[[DataConfig], object]


FORMATS: dict[str, Format] = {}
"""Name, as ``DataConfig.format`` has it -> format."""


def _is_fold(text: str) -> str:
    Fold.parse(text)
    return text


class DataConfig(Settings):
    """A data set or a part of one.

    Paths may hold environment variables (``$CLIPDEPTH_DATA/libero``), which are expanded when the
    set is opened: a stored config is portable.
    """

    IDLE: ClassVar[tuple[Idle, ...]] = (
        Idle("repeat", lambda data: data.share is not None, "share"),
    )

    format: str
    """How the set is stored, one of ``data/formats/``.
    ``rgbd``: ``<root>/<split>/<sequence>/<name>.jpg`` and ``.depth.png``, with meta.json.
    ``nyu``, ``kitti``: BTS-style list "rgb depth focal" over folders. ``nyu_mat``: the official
    nyu_depth_v2_labeled.mat. ``hf``: a Hugging Face data set, streamed. ``webdataset``: tar
    shards, streamed."""

    root: str = Field(min_length=1)
    """Folder; for ``nyu_mat`` the .mat file; for ``hf`` a hub id or a folder; for ``webdataset``
    tar files or addresses, with braces: ``train-{000..012}.tar``."""

    split: str = "train"
    """Split folder (``rgbd``) or split name (``hf``). ``nyu_mat``: ``train``, ``test`` or ``all``.
    List formats: only part of the samples' names. Tar files have none."""

    name: str | None = None
    """Name of the set in samples' names; None: the last part of ``root``."""

    files: str | None = None
    """``nyu``, ``kitti``: the list, relative to ``root`` or absolute. ``nyu_mat``: the official
    splits.mat, or a text file with one image number a line (from 1, as in splits.mat)."""

    image_root: str = ""
    """Folder that the list's pictures are relative to, under ``root`` or absolute."""

    depth_root: str = ""
    """The same for its depth maps. KITTI's are also looked for in ``train/`` and ``val/`` there,
    as the official archive unpacks."""

    depth_scale: GivenMetres | None = None
    """Stored depth over metres. None: what meta.json says (``rgbd``), 1000 (``nyu``), 256
    (``kitti``), 1 (``nyu_mat``, and floats in streams); integers in streams need it."""

    depth_key: Literal["rawDepths", "depths"] = "rawDepths"
    """``rawDepths``: as measured, used by published figures. ``depths``: inpainted."""

    min_depth: GivenNearest = 1e-3
    """Nearest depth in metres; less is invalid."""

    max_depth: GivenMetres | None = None
    """Farthest depth in metres; more is invalid. None: meta.json's (``rgbd``), 10 (NYU), 80
    (KITTI), no bound elsewhere."""

    intrinsics: GivenCamera | None = None
    """(fx, fy, cx, cy), or a 3 x 3 matrix, of every stored picture, before ``crop``, in place of
    the set's own. A camera that no lens has at the picture's size is refused (``lenses.py``)."""

    crop: Crop | None = None
    """``kb``: KITTI's benchmark crop, 352 x 1216 at the bottom centre. ``nyu``: without the white
    frame of NYU's pictures, rows 45 to 471 and columns 43 to 607."""

    redistributable: bool | None = None
    """True: only sequences that have, or whose source has, exactly ``"redistributable": "yes"`` in
    meta.json, without conditions ("yes, with attribution"). False: only the others, to measure on.
    """

    fold: Annotated[str, AfterValidator(_is_fold)] | None = None
    """``1/5``: every fifth sequence, by a hash of its name; ``not 1/5``: the others. So places are
    left out of training, to validate on, where a set has no split for it. ``1/5 of each``: the
    first fifth of every sequence's frames, for sets of few sequences."""

    with_camera: bool = False
    """Only frames whose intrinsics are known, as a head with a canonical camera needs."""

    limit: Count | None = None
    """At most this many samples, evenly spread over the set (of a stream: its first ones, in every
    epoch the same)."""

    repeat: Weighing = 1.0
    """How often each sample is seen in an epoch; 2.5: twice, and a random half of the samples once
    more. For streams: sampling weight relative to the other streams."""

    share: Weighing | None = None
    """Share of the batches that is of this training set, in place of ``repeat``, whatever the
    sets' sizes: relative to the sum of all training sets' shares, which have to be given of all or
    of none. An epoch then has as many samples as the sets have together; a set's part of it is
    rounded to whole samples, each seen equally often or once more than others."""

    scale_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """How much the scale of this training set's depths counts in the loss: of each picture's mean
    error of log depth, this share is left in. 1: metric depth; 0: only depth relative to the
    picture's own scale, for sets whose scale should not be learnt; a head with
    ``canonical_focal`` then takes frames whose camera is not known."""

    augment: AugmentConfig | None = None
    """Augmentation of this training set; replaces the run's ``augment`` entirely. None: the
    run's."""

    subset: str | None = None
    """Configuration name of a Hugging Face data set."""

    revision: str | None = None
    """Its branch, tag or commit."""

    image_column: str | None = None
    """Column (``hf``; None: "image") or suffixes (``webdataset``; None: "jpg;jpeg;png;webp")."""

    depth_column: str | None = None
    """The same for depth; None: "depth", in tar files "depth.png"."""

    intrinsics_column: str | None = None
    """The same for the camera, [fx, fy, cx, cy] or a 3 x 3 matrix; None: not read, in tar files
    "intrinsics.json" where it is there."""

    shuffle_buffer: Count = 1000
    """Size of a stream's shuffle buffer, in undecoded samples."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise ValueError(f"format: no such format {self.format!r}, known are {known}")
        stored = FORMATS[self.format]
        for field in sorted(self.model_fields_set - stored.reads):
            readers = sorted(name for name, one in FORMATS.items() if field in one.reads)
            if readers and self.given(field):
                raise ValueError(
                    f"{field}: not read by format {self.format}, only by {', '.join(readers)}"
                )
        for field in sorted(stored.needs):
            if getattr(self, field) is None:
                raise ValueError(f"{field}: must be given, format {self.format} needs it")
        if self.max_depth is not None and self.max_depth <= self.min_depth:
            raise ValueError(f"max_depth: {self.max_depth} m is not over {self.min_depth} m")
        stored.check(self)
        return self

    @property
    def is_stream(self) -> bool:
        """Whether the set is read front to back."""
        return FORMATS[self.format].streams

    @property
    def title(self) -> str:
        """Name of the set in samples' names."""
        root = self.location()
        return self.name or ospath.basename(root.rstrip("/")) or root  # noqa: PTH119

    def location(self) -> str:
        """``root`` with its environment variables."""
        return expand(self.root)

    def path(self, relative: str) -> Path:
        """A path of the config, environment variables expanded, taken from the root."""
        return Path(self.location()) / expand(relative)


def register_format(
    name: str,
    *,
    reads: Collection[str] = (),
    needs: Collection[str] = (),
    streams: bool = False,
    splits: bool = True,
    check: Callable[[DataConfig], object] = lambda _: None,
) -> Callable[[_Set], _Set]:
    """Registers the decorated class, which takes a ``DataConfig``; see ``Format``."""

    def register(made: _Set) -> _Set:
        if name in FORMATS:
            raise ValueError(f"data format {name!r} is registered already")
        fields = frozenset({*reads, *needs, *(["split"] if splits else [])})
        FORMATS[name] = Format(made, streams, fields, frozenset(needs), check)
        return made

    return register


def check_mixture(configs: Sequence[DataConfig]) -> None:
    """Checks that sets can be joined."""
    if len({config.share is None for config in configs}) > 1:
        without = next(config.title for config in configs if config.share is None)
        raise DataError(
            f"share: must be given of all sets or of none, {without} has none: a share is relative "
            "to the others"
        )
    if len({config.is_stream for config in configs}) > 1:
        raise DataError(
            "streams (hf, webdataset) can't be mixed with sets on disk: there is no common order; "
            "make all of them streams, or none"
        )


def distinct_titles(configs: Sequence[DataConfig], *, split: bool = False) -> list[str]:
    """A name for each set: its title; where two have the same, the split, or its number, too.

    ``split``: always with it.
    """
    titles = [config.title for config in configs]
    if split or len(set(titles)) < len(titles):
        titles = [f"{config.title}/{config.split}" for config in configs]
    if len(set(titles)) < len(titles):
        titles = [f"{number}:{title}" for number, title in enumerate(titles)]
    return titles


def expand(text: str) -> str:
    """Expands ``$NAME``, ``${NAME}`` and a leading ``~``; raises DataError where one is not set."""
    expanded = ospath.expandvars(ospath.expanduser(text))  # noqa: PTH111
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        name = unset.group(1).strip("{}")
        raise DataError(
            f"{text}: the environment variable {name} is not set; export {name}=<folder> or write "
            "the path out"
        )
    return expanded
