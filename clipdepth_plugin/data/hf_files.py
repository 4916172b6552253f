"""What a Hugging Face data set's own files may name, checked before ``datasets`` follows them.

Its card (README.md) lists data files, what ``save_to_disk`` wrote lists splits and Arrow files:
all lie in the data set, or at an address whose scheme is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clipdepth_plugin.data.addresses import check_inside, checked_address
from clipdepth_plugin.errors import DataError, shortened
from clipdepth_plugin.files.documents import MIB, parse_yaml, read_json
from clipdepth_plugin.files.paths import read_bytes

_CARDS = ("README.md", ".huggingface.yaml")
_HUB_ID = re.compile(r"(hf://datasets/)?[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")
_BYTES = 16 * MIB


def checked_place(location: str) -> str:
    """A folder's whole path, or a hub id.

    Raises:
        DataError: Neither.
    """
    address = checked_address(location)
    try:
        if Path(address).is_dir():
            if "::" in str(Path(address).resolve()):
                raise DataError(f"{location}: rename the folder: '::' is no part of a path here")
            return str(Path(address).resolve())
    except OSError as error:
        raise DataError(f"{shortened(location)}: can't be read ({error})") from error
    if not _HUB_ID.fullmatch(address):
        raise DataError(
            f"{shortened(location)}: can't be opened: neither a folder that exists nor a hub id"
        )
    return address


def check_folder(folder: Path) -> bool:
    """Checks a local data set; True for one that ``save_to_disk`` wrote."""
    splits = folder / "dataset_dict.json"
    parts = [folder]
    if splits.is_file():
        names = list(_texts([_read(splits).get("splits")]))
        parts = [folder / check_inside(name, str(splits)) for name in names]
    saved = [part / "state.json" for part in parts if (part / "state.json").is_file()]
    for path in saved:
        for name in _texts([_read(path).get("_data_files")]):
            check_inside(name, str(path))
    for card in _CARDS:
        if (folder / card).exists():
            _check_card(read_bytes(folder / card, DataError, limit=_BYTES), folder / card)
    return splits.is_file() or bool(saved)


def check_hub_card(repo: str, revision: str | None) -> None:
    """Checks the card of a data set of the hub; none is fine."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, at = repo.removeprefix("hf://datasets/").partition("@")
    for card in _CARDS:
        try:
            file = hf_hub_download(name, card, repo_type="dataset", revision=at or revision)
        except EntryNotFoundError:
            continue
        _check_card(read_bytes(file, DataError, limit=_BYTES), f"{repo}: {card}")


def _check_card(content: bytes, where: str | Path) -> None:
    """Checks each pattern in ``configs`` of a card, which stands between two lines of dashes."""
    text = content.decode("utf-8", errors="replace").removeprefix("\ufeff")
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if not found and str(where).endswith(".md"):
        return
    tree = parse_yaml(found[1] if found else text, str(where), DataError)
    configs = tree.get("configs") if isinstance(tree, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict):
            for pattern in _texts([config.get("data_files"), config.get("data_dir")]):
                address = checked_address(pattern) if "://" in pattern else pattern
                if not address.startswith(("http://", "https://", "hf://")):
                    check_inside(pattern, str(where))


def _read(path: Path) -> dict[str, Any]:
    tree = read_json(path, DataError, limit=_BYTES)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected an object, got a {type(tree).__name__}")
    return tree


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _texts(value.values())
        elif isinstance(value, list):
            yield from _texts(value)
