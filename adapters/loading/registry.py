"""Libraries that hosts are loaded through: one file each in this folder, found by itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipdepth_plugin.adapters.discovery import import_siblings
from clipdepth_plugin.adapters.loading.folder import CONFIG_FILE, check_folder, read_config
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing


class Loaded(NamedTuple):
    """The host, what its image processor says, and what reports call it (None: its spec).

    ``load_processor`` loads that processor itself, where the library has such.
    """

    model: nn.Module
    preprocessing: Preprocessing | None = None
    label: str | None = None
    load_processor: Callable[[], Any] | None = None


Load = Callable[[str, bool], Loaded]
"""From a name or a folder's path, and whether the weights are to be random."""


@dataclass(frozen=True)
class Library:
    """How hosts of one library are loaded.

    Attributes:
        load: By the name after the scheme.
        example: For messages; of a library of a single host its whole name, which is the scheme.
        load_folder: From a folder that the library saved; None where it saves none.
        folder_file: A file that only its folders have; or else
        folder_key: a key that only its folders' config.json has.
    """

    load: Load
    example: str
    load_folder: Load | None = None
    folder_file: str | None = None
    folder_key: str | None = None


_HEAD_KEYS = frozenset({"semantic_levels", "structural_levels", "film_hidden"})
_LIBRARIES: dict[str, Library] = {}


def register(scheme: str, library: Library) -> None:
    """Registers a library by what stands before the colon of its hosts' names."""
    if scheme in _LIBRARIES:
        raise ValueError(f"two libraries of the scheme {scheme!r}")
    _LIBRARIES[scheme] = library


def loader_of(spec: str) -> tuple[Load, str]:
    """The function that loads a host, and the name or folder to give it."""
    import_siblings(__name__, __file__)
    scheme, _, name = spec.partition(":")
    library = _LIBRARIES.get(scheme)
    if library is not None and (name or library.example == spec):
        name = name.removeprefix("local-dir:")
        if name and library.load_folder is not None and Path(name).is_dir():
            check_folder(Path(name))
            return library.load_folder, name
        return library.load, name
    if Path(spec).is_dir():
        check_folder(Path(spec))
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
    config = _read_config(folder)
    for library in _LIBRARIES.values():
        if library.load_folder is not None and library.folder_key in config:
            return library.load_folder
    if config.keys() >= _HEAD_KEYS:
        raise HostError(f"host {folder}: this is a depth head, not a host; use --head for it")
    keys = " nor ".join(one.folder_key for one in _LIBRARIES.values() if one.folder_key)
    raise HostError(
        f"host {folder}: config.json has neither {keys}, so it is unknown which library saved "
        "this model"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise HostError(
            f"host {folder}: no config.json and no open_clip_config.json in this folder; give "
            "one that save_pretrained (transformers), open_clip or timm wrote"
        )
    return read_config(path)


def require_safetensors(folder: str, *names: str) -> None:
    """Refuses a folder without one of these files: pickles can run code when loaded."""
    if any(Path(folder, name).is_file() for name in names):
        return
    others = sorted(
        path.name
        for path in Path(folder).iterdir()
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    found = f"it has {', '.join(others)}, which are pickles and not read" if others else "none"
    raise HostError(
        f"host {folder}: no weights in {' or '.join(names)}: {found}. Save the model with "
        "safetensors, or ask for random weights"
    )


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """The end of a message for an unknown name: the known ones nearest to it."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else f"see {otherwise}"
