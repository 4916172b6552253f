"""``python:module:function``: any function, or an object of a class, of the user's own.

The contract is in ``docs/labelling.md``: pictures of one size and their focal lengths in, a pair
of depth and validity for each out.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.errors import SourceError, quoted
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.labelling.checked import CheckedSource, Estimate
from clipdepth_plugin.labelling.source import (
    DepthSource,
    Picture,
    SourceCard,
    register_source,
)
from clipdepth_plugin.labelling.versions import files_version
from clipdepth_plugin.settings import GivenMetres, Settings

_EXPECTED = "a list of one pair (depth, validity or None) for each picture"


class CallableAttributes(Settings):
    """What a callable says of itself, by attributes of these names."""

    units: Units = "metres"

    version: str | None = None
    """By default the hash of the file that it stands in."""

    licence: str | None = None

    max_depth: GivenMetres | None = None
    """Metres at which it saturates."""

    reads_focal: bool = False
    """Whether its metres depend on the focal lengths that it is given."""


@register_source("python")
def open_callable(text: str, *, device: str, dtype: str | None) -> DepthSource:
    """A function, or a class that is made once with ``device=`` and ``dtype=``."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise SourceError(f"python:{text}: expected python:module:function")
    module = _imported(module_name, text)
    found = getattr(module, name, None)
    version = _version(found, module)
    if isinstance(found, type):
        found = found(device=device, dtype=dtype)
    elif dtype is not None:
        raise SourceError(
            f"python:{text}: a function chooses its own dtype; leave dtype out, or name a class, "
            "which is made with device= and dtype="
        )
    if not callable(found):
        raise SourceError(f"python:{text}: {name} of {module_name} is {quoted(found)}, no callable")
    given = {
        key: getattr(found, key) for key in CallableAttributes.model_fields if hasattr(found, key)
    }
    said = checked(CallableAttributes, given, f"python:{text}", SourceError)
    card = {**said.model_dump(), "source": f"python:{text}", "version": said.version or version}
    return CallableSource(SourceCard.model_validate(card), found)


class CallableSource(CheckedSource):
    """A callable and what it says of itself."""

    def __init__(self, card: SourceCard, function: Callable[..., Any]) -> None:
        """Keeps both."""
        self.card, self._function = card, function

    def run(self, pictures: Sequence[Picture]) -> list[Estimate]:
        """See ``CheckedSource.run``."""
        # Copies: what the function does to them stays with it.
        images = [picture.image_HW3.copy() for picture in pictures]
        focals = [None if one.intrinsics is None else one.intrinsics[0] for one in pictures]
        given = self._function(images, focals)
        if not isinstance(given, list | tuple):
            raise SourceError(
                f"{self.card.source}, {pictures[0].name}: returned a {type(given).__name__}, "
                f"expected {_EXPECTED}"
            )
        for picture, pair in zip(pictures, given, strict=False):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise SourceError(
                    f"{self.card.source}, {picture.name}: returned a {type(pair).__name__} for it, "
                    f"expected {_EXPECTED}"
                )
        return [Estimate(*pair) for pair in given]


def _imported(name: str, text: str) -> Any:
    """The module, also from the working directory, as ``python -m`` finds it."""
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise SourceError(
            f"python:{text}: there is no module {error.name}, neither installed nor in {here}"
        ) from error


def _version(found: Any, module: Any) -> str:
    """The hash of the file that the code stands in, or else of its module's."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(found))
    except TypeError:  # an object, or built in
        file = None
    file = file or getattr(module, "__file__", None)
    return files_version([Path(file)]) if file else "built in"
