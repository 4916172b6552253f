"""The files of an exported folder: which there are, and whether they are those that were written.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ExportError, quoted
from clipdepth_plugin.files.paths import check_file, names_in, read_bytes
from clipdepth_plugin.runtime.card import CARD_FILE, FORMAT, Card

NETWORK_FILE, HOST_FILE = "tower_depth.onnx", "tower.onnx"
"""Tower and depth; where it was asked for, the tower alone."""

_LARGEST_MAP = 1 << 31  # bytes


def read_card(folder: StrPath) -> Card:
    """The card of an exported folder.

    Raises:
        ExportError: There is none, or it is wrong.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ExportError(f"folder: got {quoted(folder)}, expected a path")
    path = Path(folder) / CARD_FILE
    check_file(path, ExportError, "no such file; give a folder that clipdepth export wrote")
    return Card.read(path)


def checked_card(folder: StrPath, name: str) -> Card:
    """The folder's card, by whose checksums the network of that name is the one exported.

    Raises:
        ExportError: No export wrote the folder, or a file is missing, damaged or another one.
    """
    card, folder = read_card(folder), Path(folder)
    if card.format is None:
        raise ExportError(
            f"{folder / CARD_FILE}: no format: {FORMAT}, so that no export wrote it: make the "
            "folder by clipdepth export"
        )
    if name not in card.files:
        raise ExportError(
            f"{folder / CARD_FILE}: names no {name}, but {', '.join(card.files) or 'no files'}; "
            "export with --format onnx"
        )
    # Large networks keep their weights in files beside: FILE.data or FILE_data.
    for one in sorted({*card.files, *names_in(folder, ExportError)}):
        if one.startswith(name):
            verify(folder, one, card)
    return card


def verify(folder: Path, name: str, card: Card) -> None:
    """Checks that a file is the one that the card names.

    Raises:
        ExportError: It is missing, damaged or another one, or not named.
    """
    path = folder / name
    if name not in card.files:
        raise ExportError(f"{path}: {CARD_FILE} does not name it; remove it, or export again")
    check_file(path, ExportError, f"no such file, though {CARD_FILE} names it; copy it again")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise ExportError(f"{path}: can't be read ({problem.strerror})") from problem
    if digest != card.files[name].sha256:
        raise ExportError(
            f"{path}: damaged, or of another export: its SHA-256 is {digest[:12]}..., {CARD_FILE} "
            f"has {card.files[name].sha256[:12]}...; copy or export the folder again"
        )


def load_map(path: Path) -> NDArray[np.float32]:
    """A map (H, W) of a .npy file."""
    content = read_bytes(path, ExportError, limit=_LARGEST_MAP)
    try:
        map_HW = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as problem:  # numpy raises ValueError, EOFError, SyntaxError ...
        raise ExportError(f"{path}: is no .npy file of a map; export it again") from problem
    if map_HW.dtype != np.float32 or map_HW.ndim != 2:
        raise ExportError(f"{path}: {map_HW.dtype} {map_HW.shape}, expected float32 (H, W)")
    return map_HW  # type: ignore[no-any-return]
