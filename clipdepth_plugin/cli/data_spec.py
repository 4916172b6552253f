"""Data sets on the command line: ``FORMAT:ROOT[:SPLIT]``, or a YAML or JSON file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clipdepth_plugin.data import FORMATS, DataConfig
from clipdepth_plugin.data.config import expand
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.documents import read_json, read_yaml
from clipdepth_plugin.files.paths import is_folder
from clipdepth_plugin.files.problems import checked

TRAINING_ONLY = ("augment", "repeat", "scale_share", "share", "shuffle_buffer")
"""Fields of a set that only training reads."""


def parse_data(text: str, default_split: str = "test") -> DataConfig:
    """Reads what ``--data`` takes.

    Args:
        text: ``rgbd:$DATA/libero:test`` (environment variables are expanded when the set is
            opened), or the path of a YAML or JSON file with the fields of ``DataConfig``.
        default_split: The split where none is named.

    Raises:
        DataError: Neither a known format nor a file that can be read, or the fields contradict
            each other.
    """
    if text.lower().endswith((".yaml", ".yml", ".json")) and os.path.isfile(text):  # noqa: PTH113
        read = read_json if text.lower().endswith(".json") else read_yaml
        fields = read(text, DataError)
        if not isinstance(fields, dict):
            raise DataError(f"{text}: expected the fields of a set, got {type(fields).__name__}")
        fields = {**_default_split(fields.get("format"), default_split), **fields}
        return _measured(fields, text)
    kind, _, location = text.partition(":")
    if kind not in FORMATS or not location:
        raise DataError(f"data {text!r}: {_expected(text, kind)}")
    root, split = location, _default_split(kind, default_split)
    before, _, after = location.rpartition(":")
    in_address = "://" in location and "/" in after  # the colon of its scheme or port
    # A colon in the name of a folder that exists begins no split.
    if ":" in location and not in_address and not os.path.exists(_expanded(location)):  # noqa: PTH110
        root, split = before, {"split": after}
    if not root or "" in split.values():
        raise DataError(f"data {text!r}: {'split' if root else 'root'} is empty; {_FORM}")
    needs = FORMATS[kind].needs
    if needs:
        raise DataError(
            f"data {text!r}: format {kind} needs {', '.join(sorted(needs))}, too; {_AS_FILE}"
        )
    return _measured({"format": kind, "root": root, **split}, f"data {text!r}", f"; {_AS_FILE}")


_FORM = (
    "expected FORMAT:ROOT or FORMAT:ROOT:SPLIT with a format of "
    f"{', '.join(sorted(FORMATS))}, or a YAML or JSON file that exists"
)
_AS_FILE = "write them into a YAML file (format: ..., root: ..., files: ...) and give its path"


def _expected(text: str, kind: str) -> str:
    known = kind.strip().lower()
    if known in FORMATS and known != kind:
        return f"formats are written in small letters without blanks; did you mean {known}:...?"
    if text and is_folder(Path(text)):
        return f"is a folder, whose format is not said; did you mean rgbd:{text}?"
    return _FORM


def _expanded(location: str) -> str:
    try:
        return expand(location)
    except DataError:  # said when the set is opened
        return location


def _default_split(kind: object, split: str) -> dict[str, str]:
    """The field ``split`` for a format that has splits."""
    stored = FORMATS.get(kind) if isinstance(kind, str) else None
    return {"split": split} if stored is not None and "split" in stored.reads else {}


def _measured(fields: dict[str, Any], where: str, hint: str = "") -> DataConfig:
    """The config of a set that is measured, from which nothing is drawn."""
    try:
        config = checked(DataConfig, fields, where, DataError)
    except DataError as error:
        raise DataError(f"{error}{hint}") from error
    for name in TRAINING_ONLY:
        if config.given(name):
            raise DataError(
                f"{where}: {name} is for training; a set that is measured is read once, as it is: "
                "leave it out"
            )
    return config
