"""Data sets on the command line: ``FORMAT:ROOT[:SPLIT]``, or a YAML or JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clipdepth_plugin.data import FORMATS, DataConfig
from clipdepth_plugin.errors import DataError

TRAINING_ONLY = ("augment", "repeat", "shuffle_buffer")
"""Fields of a set that only training reads."""


def parse_data(text: str, default_split: str = "test") -> DataConfig:
    """Reads what ``--data`` takes.

    Args:
        text: ``rgbd:$DATA/libero:test`` (environment variables are expanded when the set is
            opened), or the path of a YAML or JSON file with the fields of ``DataConfig``.
        default_split: The split where none is named.

    Raises:
        DataError: Neither a known format nor a file that can be read.
        pydantic.ValidationError: The fields contradict each other.
    """
    if text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file():
        try:
            fields = yaml.safe_load(Path(text).read_text(encoding="utf-8"))  # JSON is YAML, too
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{text}: can't be read as YAML or JSON ({error})") from error
        if not isinstance(fields, dict):
            raise DataError(f"{text}: expected the fields of a set, got {type(fields).__name__}")
        return _measured({**_default_split(fields.get("format"), default_split), **fields})
    kind, _, location = text.partition(":")
    if kind not in FORMATS or not location:
        raise DataError(
            f"data {text!r}: expected FORMAT:ROOT or FORMAT:ROOT:SPLIT with a format of "
            f"{', '.join(sorted(FORMATS))}, or a YAML or JSON file that exists"
        )
    root, split = location, _default_split(kind, default_split)
    before, _, after = location.rpartition(":")
    in_address = "://" in location and "/" in after  # the colon of its scheme or port
    # A colon in the name of a folder that exists begins no split.
    if before and not in_address and not Path(location).exists():
        root, split = before, {"split": after}
    return _measured({"format": kind, "root": root, **split})


def _default_split(kind: object, split: str) -> dict[str, str]:
    """The field ``split`` for a format that has splits."""
    stored = FORMATS.get(kind) if isinstance(kind, str) else None
    return {"split": split} if stored is not None and "split" in stored.reads else {}


def _measured(fields: dict[str, Any]) -> DataConfig:
    """The config of a set that is measured, from which nothing is drawn."""
    config = DataConfig.model_validate(fields)
    for name in TRAINING_ONLY:
        if config.given(name):
            raise DataError(
                f"{name}: is for training; a set that is measured is read once, as it is: leave it "
                "out"
            )
    return config
