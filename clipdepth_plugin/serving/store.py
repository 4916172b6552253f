"""Depth maps by picture, bounded in memory; the pictures of each request.

Axes: H W a map's size.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What is known of one picture.

    Attributes:
        maps: (H, W) float32 on the CPU, of each view, by head; ``problem``: why there are none.
    """

    maps: Mapping[str, list[Tensor]] = field(default_factory=dict)
    problem: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return 256 + sum(4 * one.numel() for maps in self.maps.values() for one in maps)


class MapStore:
    """By a picture's hash; who was asked for longest ago is dropped first."""

    def __init__(self, bound: int) -> None:
        """``bound``: bytes of all maps together."""
        self._bound = bound
        self._size = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, picture: str, kept: Kept) -> None:
        """Keeps what is known of a picture, in the place of what was."""
        self._drop(picture)
        self._kept[picture] = kept
        self._size += kept.size
        while self._size > self._bound and self._kept:
            self._drop(next(iter(self._kept)))

    def get(self, picture: str) -> Kept | None:
        """None of one that was never kept, or dropped."""
        kept = self._kept.get(picture)
        if kept is not None:
            self._kept.move_to_end(picture)
        return kept

    def _drop(self, picture: str) -> None:
        if (kept := self._kept.pop(picture, None)) is not None:
            self._size -= kept.size


@dataclass(frozen=True)
class Picture:
    """A picture of a request: its hash, and image or video."""

    hash: str
    modality: str


class RequestLog:
    """Which pictures a request shows, of the last requests that an engine has begun."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._pictures: OrderedDict[str, tuple[Picture, ...]] = OrderedDict()

    @property
    def unknown(self) -> str:
        """What is said of an id that is not found."""
        return (
            "no request of this id is known: none had it, or it had not begun, or more than "
            f"{self._bound} began since (the option requests)"
        )

    def note(self, request: str, pictures: tuple[Picture, ...]) -> None:
        """Notes a request, by the engine's own id of it."""
        self._pictures[request] = pictures
        self._pictures.move_to_end(request)
        while len(self._pictures) > self._bound:
            self._pictures.popitem(last=False)

    def find(self, request: str) -> list[tuple[Picture, ...]]:
        """The pictures of the requests that an id from outside names; several where it is reused.

        The engine puts eight random digits behind such an id, and a number before it where a
        prompt is answered several times.
        """
        found: dict[tuple[Picture, ...], None] = {}
        own_id = re.compile(rf"(\d+_)?{re.escape(request)}-[0-9a-f]{{8}}")
        for own, pictures in self._pictures.items():
            if own == request or (request in own and own_id.fullmatch(own)):
                found[pictures] = None
        return list(found)
