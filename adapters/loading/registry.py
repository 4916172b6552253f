"""Libraries that hosts are loaded through: one file each in this folder, found by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipdepth_plugin.adapters.discovery import import_siblings
from clipdepth_plugin.adapters.loading.folder import check_no_head, read_config
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing


@dataclass(frozen=True)
class Loaded:
    """What a library gives.

    Attributes:
        model: The host.
        preprocessing: What its image processor says, where the library knows.
        label: What reports call it; None for the spec.
    """

    model: nn.Module
    preprocessing: Preprocessing | None = None
    label: str | None = None


Load = Callable[[str, bool], Loaded]
"""From a name or a folder's path, and whether the weights are to be random."""


@dataclass(frozen=True)
class Library:
    """How hosts of one library are loaded.

    Attributes:
        load: By the name after the scheme.
        example: For the message that says what a host may be; of a library of a single host, its
            whole name, which is the scheme.
        load_folder: From a folder that the library saved; None where it saves none.
        folder_file: A file that only its folders have.
        folder_key: A key that only its folders' config.json has, where there is no such file.
    """

    load: Load
    example: str
    load_folder: Load | None = None
    folder_file: str | None = None
    folder_key: str | None = None


_LIBRARIES: dict[str, Library] = {}


def register(scheme: str, library: Library) -> None:
    """Registers a library by what stands before the colon of its hosts' names.

    Raises:
        ValueError: The scheme is registered already.
    """
    if scheme in _LIBRARIES:
        raise ValueError(f"two libraries of the scheme {scheme!r}")
    _LIBRARIES[scheme] = library


def loader_of(spec: str) -> tuple[Load, str]:
    """The function that loads a host, and the name or folder to give it.

    Raises:
        HostError: No such scheme or folder, or one of an unknown kind.
    """
    import_siblings(__name__, __file__)
    scheme, _, name = spec.partition(":")
    library = _LIBRARIES.get(scheme)
    if library is not None and (name or library.example == spec):
        name = name.removeprefix("local-dir:")
        if name and library.load_folder is not None and Path(name).is_dir():
            return library.load_folder, name
        return library.load, name
    if Path(spec).is_dir():
        return _folder_loader(Path(spec)), spec
    examples = ", ".join(one.example for one in _LIBRARIES.values())
    raise HostError(
        f"host {spec!r}: neither a known scheme nor a folder that exists; say {examples}, or the "
        "path of a saved model's folder"
    )


def _folder_loader(folder: Path) -> Load:
    """Of the library that saved a folder."""
    for library in _LIBRARIES.values():
        marked = library.folder_file and (folder / library.folder_file).is_file()
        if library.load_folder is not None and marked:
            return library.load_folder
    config = read_config(folder)
    for library in _LIBRARIES.values():
        if library.load_folder is not None and library.folder_key in config:
            return library.load_folder
    check_no_head(folder, config)
    keys = " nor ".join(one.folder_key for one in _LIBRARIES.values() if one.folder_key)
    raise HostError(
        f"host {folder}: config.json has neither {keys}, so it is unknown which library saved "
        "this model"
    )
