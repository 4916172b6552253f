"""The registered data formats: a file in ``data/formats/`` registers each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

_Set = TypeVar("_Set", bound=type)


@dataclass(frozen=True)
class Format:
    """A way in which data sets are stored.

    Attributes:
        open: ``DataConfig`` -> ``SampleDataset``, or ``StreamDataset`` where ``streams``.
        streams: Whether the set is read front to back, not by number.
        reads: The fields of ``DataConfig`` that it reads beside those that every format reads.
        needs: The fields that have to be given.
        check: Raises a ValueError for a config that this format can't be opened with.
    """

    open: Callable[[Any], Any]
    streams: bool
    reads: frozenset[str]
    needs: frozenset[str]
    check: Callable[[Any], object]


FORMATS: dict[str, Format] = {}
"""Name, as ``DataConfig.format`` has it -> format."""


def register_format(
    name: str,
    *,
    reads: Collection[str] = (),
    needs: Collection[str] = (),
    streams: bool = False,
    check: Callable[[Any], object] = lambda _: None,
) -> Callable[[_Set], _Set]:
    """Registers the decorated class, which takes a ``DataConfig``; see ``Format``."""

    def register(made: _Set) -> _Set:
        if name in FORMATS:
            raise ValueError(f"data format {name!r} is registered already")
        fields = frozenset({*reads, *needs})
        FORMATS[name] = Format(made, streams, fields, frozenset(needs), check)
        return made

    return register
