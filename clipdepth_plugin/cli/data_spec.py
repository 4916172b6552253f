"""Data sets on the command line: ``FORMAT:ROOT[:SPLIT]``, or a YAML or JSON file."""

from __future__ import annotations

from pathlib import Path

from clipdepth_plugin.data import FORMATS, DataConfig
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.documents import read_json, read_yaml


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
        read = read_json if text.endswith(".json") else read_yaml
        fields = read(text, DataError)
        if not isinstance(fields, dict):
            raise DataError(f"{text}: expected the fields of a set, got {type(fields).__name__}")
        return DataConfig.model_validate({"split": default_split, **fields})
    kind, _, location = text.partition(":")
    if kind not in FORMATS or not location:
        raise DataError(
            f"data {text!r}: expected FORMAT:ROOT or FORMAT:ROOT:SPLIT with a format of "
            f"{', '.join(sorted(FORMATS))}, or a YAML or JSON file that exists"
        )
    root, split = location, default_split
    before, _, after = location.rpartition(":")
    in_address = "://" in location and "/" in after  # the colon of its scheme or port
    # A colon in the name of a folder that exists begins no split.
    if before and not in_address and not Path(location).exists():
        root, split = before, after
    return DataConfig.model_validate({"format": kind, "root": root, "split": split})
