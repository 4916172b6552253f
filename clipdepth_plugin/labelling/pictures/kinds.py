"""Pictures: a source of pictures, read part by part, and the registry of its kinds.

A kind is one file that registers a class. ``recognises`` says of a text, or of a data set's
config, whether it is of this kind; just one kind has to.

Axes: H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.errors import DataError, quoted

PictureSpec = str | DataConfig
"""A path, a glob, ``lerobot:REPO``, or the config of a stream (``hf``, ``webdataset``)."""

PNG, JPEG = ".png", ".jpg"


@dataclass(frozen=True, slots=True)
class Content:
    """A picture that was read.

    Attributes:
        image_HW3: uint8 RGB, upright.
        encoded: Its own file, where that is an upright JPEG or PNG; it is kept as it is.
        suffix: How it is stored: ``.jpg`` or ``.png``.
        camera: (fx, fy, cx, cy) as the data set says it.
        exif_focal: Focal length in pixels as its EXIF says it.
    """

    image_HW3: NDArray[np.uint8]
    encoded: bytes | None = None
    suffix: str = PNG
    camera: Intrinsics | None = None
    exif_focal: float | None = None


class Unread(NamedTuple):
    """A picture before it is read.

    Attributes:
        name: ``<sequence>/<frame>``.
        place: Where it comes from, for messages.
        read: Reads it, in any thread; raises a ClipDepthError where it is damaged.
    """

    name: str
    place: str
    read: Callable[[], Content]


class Pictures(ABC):
    """Pictures of one kind, always in the same order.

    Attributes:
        reads_to_skip: Whether pictures that are not wanted have to be read past (tar files,
            videos): shards then take whole parts where there are enough of them.
        titles: How the names of its sequences begin (of a single file: the name of its frame) ->
            where those pictures are.
    """

    reads_to_skip: bool = False
    titles: Mapping[str, str]

    @property
    @abstractmethod
    def parts(self) -> int:
        """Number of folders, tar files, videos."""

    @abstractmethod
    def part(self, number: int) -> Iterator[Unread]:
        """The pictures of one of them."""

    @property
    def folders(self) -> Iterable[str]:
        """Where its pictures lie as files of their own; none: in tar files, videos, data sets."""
        return ()

    def length(self, number: int) -> int | None:
        """How many those are; None where that is not known without reading."""
        del number
        return None


class Options(NamedTuple):
    """What kinds of pictures are told.

    Attributes:
        every: Of videos and episodes, every n-th frame.
    """

    every: int = 1


_Kind = TypeVar("_Kind", bound=Callable[..., Pictures])


class _Registered(NamedTuple):
    recognises: Callable[[PictureSpec], bool]
    open: Callable[[PictureSpec, Options], Pictures]


KINDS: dict[str, _Registered] = {}
"""Name of a kind -> how it is known and opened."""


def register_pictures(
    name: str, *, recognises: Callable[[PictureSpec], bool]
) -> Callable[[_Kind], _Kind]:
    """Registers the decorated class, or function: (spec, ``Options``) -> ``Pictures``."""

    def register(made: _Kind) -> _Kind:
        if name in KINDS:
            raise ValueError(f"pictures {name!r} are registered already")
        KINDS[name] = _Registered(recognises, made)
        return made

    return register


def open_pictures(specs: Sequence[PictureSpec], options: Options) -> list[Pictures]:
    """Opens pictures of any kind; lists them, but reads none.

    Raises:
        ClipDepthError: Nothing is there, or two of them would give frames the same names.
    """
    if not specs:
        raise DataError("no pictures given; name files, folders, videos or a data set")
    opened: list[Pictures] = []
    titles: dict[str, str] = {}  # and, with a trailing slash, sequences that hold single files
    for spec in specs:
        kinds = [kind for kind in KINDS.values() if kind.recognises(spec)]
        if len(kinds) != 1:
            raise DataError(f"pictures {quoted(spec)}: {_EXPECTED}")
        pictures = kinds[0].open(spec, options)
        for title, place in pictures.titles.items():
            sequence = title.partition("/")[0]
            other = titles.get(title) or titles.get(sequence) or titles.get(f"{title}/")
            if other is not None:
                raise DataError(
                    f"{place} and {other}: both would be called {title}; give each once, and label "
                    "places of the same name into folders of their own"
                )
            titles[title] = place
            if sequence != title:
                titles[f"{sequence}/"] = place
        opened.append(pictures)
    return opened


_EXPECTED = (
    "expected a picture, a video, a folder, a glob, lerobot:REPO, or a stream (hf, webdataset)"
)
