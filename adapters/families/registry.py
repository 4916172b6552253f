"""Tower families: one file each in this folder, found by itself.

A file has a function decorated with ``register``: it recognises its towers by what no
other family's have, so that the order of the files does not matter, and says their traits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from clipdepth_plugin.adapters.discovery import import_siblings
from clipdepth_plugin.adapters.traits import TowerTraits, generic
from clipdepth_plugin.errors import HostError

ReadTraits = Callable[[nn.Module, int, Sequence[nn.Module]], TowerTraits | None]
"""From a tower, its width D and the modules around it, outermost first; None: another family's."""

_READERS: list[ReadTraits] = []


def register(read: ReadTraits) -> ReadTraits:
    """Registers the function that reads a family's traits."""
    _READERS.append(read)
    return read


def read_traits(tower: nn.Module, width: int, ancestors: Sequence[nn.Module]) -> TowerTraits:
    """What the family of a tower says of it; of no known family, what its structure says."""
    import_siblings(__name__, __file__)
    read = [traits for one in _READERS if (traits := one(tower, width, ancestors)) is not None]
    if len(read) > 1:
        names = ", ".join(traits.family for traits in read)
        raise HostError(
            f"{type(tower).__name__}: the families {names} all recognise this tower; make their "
            "files in adapters/families tell it apart"
        )
    return read[0] if read else generic(tower, width)
