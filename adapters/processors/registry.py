"""Readers of image processors, by the class name that transformers gives them.

A file of this folder holds view rules, and readers that are registered for the processors which
prepare pictures so. Every file is imported when a reader is first looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clipdepth_plugin.adapters.discovery import import_siblings
from clipdepth_plugin.adapters.preprocessing import ResizeKind, Triple, pair
from clipdepth_plugin.arguments import Size, parse_count
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.tiling import ViewRule


@dataclasses.dataclass(frozen=True)
class Read:
    """How a processor resizes; the arguments of ``Preprocessing`` that say so.

    ``normalisation``: (mean, std) that it was seen to apply, where its settings say others.
    """

    size: Size
    resize: ResizeKind | None = None
    resize_to: int | None = None
    view_rules: tuple[ViewRule, ...] = ()
    unknown: str = ""
    normalisation: tuple[Triple, Triple] | None = None


Reader = Callable[[Mapping[str, Any], Any], Read]
"""From a processor's settings, and the processor that was given; KeyError names what is missing."""


class Registered(NamedTuple):
    """A reader, and the settings that it reads beside those that every processor has."""

    read: Reader
    options: frozenset[str]


_BY_CLASS: dict[str, Registered] = {}
_ANY_CLASS = ""
_MOST_TILES = 256
_BACKENDS = ("Fast", "Pil")
"""Ends of class names: the same processor on another library of images."""


def register(*classes: str, options: str = "") -> Callable[[Reader], Reader]:
    """Registers a reader for classes of transformers, named without "Fast" or "Pil".

    No class is all that nobody registers; ``options`` are the settings read, with spaces between.
    """

    def add(read: Reader) -> Reader:
        for name in classes or (_ANY_CLASS,):
            if name in _BY_CLASS:
                raise ValueError(f"{name or 'the default'}: two readers of this image processor")
            _BY_CLASS[name] = Registered(read, frozenset(options.split()))
        return read

    return add


def reader_of(class_name: str) -> Registered:
    """The reader of a class of image processors."""
    import_siblings(__name__, __file__)
    name = class_name
    for end in _BACKENDS:
        name = name.removesuffix(end)
    return _BY_CLASS.get(name) or _BY_CLASS[_ANY_CLASS]


def sized(given: Mapping[str, Any]) -> Size:
    """The (height, width) that a processor's ``size`` says."""
    size = pair(given["size"])
    if size is None:
        raise KeyError("size (height and width)")
    return size


def tiles_in(given: Mapping[str, Any], key: str) -> int:
    """How many tiles a setting allows: more than any host makes would only take time and memory.

    Raises:
        HostError: It is no number from 1 to 256.
    """
    count = parse_count(given[key], key)
    if count > _MOST_TILES:
        raise HostError(f"{key}={count}: more than {_MOST_TILES} tiles of one picture")
    return count


def largest(rule: ViewRule) -> Read:
    """A rule without a size of its own: what a square image larger than any input becomes."""
    return Read(rule.views((1 << 13, 1 << 13)).views[0].view_size, view_rules=(rule,))
