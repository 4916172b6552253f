"""Data sets on the command line: ``FORMAT:ROOT[:SPLIT]``, or a YAML or JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdepth_plugin.errors import DataError

if TYPE_CHECKING:
    from clipdepth_plugin.data import DataConfig

_FILES = (".yaml", ".yml", ".json")


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
    from clipdepth_plugin.data import FORMATS, DataConfig

    if text.endswith(_FILES) and Path(text).is_file():
        return DataConfig.model_validate({"split": default_split, **_read(Path(text))})
    kind, _, place = text.partition(":")
    if kind not in FORMATS or not place:
        raise DataError(
            f"data {text!r}: expected FORMAT:ROOT or FORMAT:ROOT:SPLIT with a format of "
            f"{', '.join(sorted(FORMATS))}, or a YAML or JSON file that exists"
        )
    root, split = place, default_split
    before, _, after = place.rpartition(":")
    in_address = "://" in place and "/" in after  # its scheme's colon, or its port's
    # A folder whose name has a colon is taken as it is.
    if before and not in_address and not Path(place).exists():
        root, split = before, after
    return DataConfig.model_validate({"format": kind, "root": root, "split": split})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error
    if path.suffix == ".json":
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from error
    else:
        fields = _from_yaml(path, text)
    if not isinstance(fields, dict):
        raise DataError(f"{path}: expected the fields of a data set, got {type(fields).__name__}")
    return fields


def _from_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise DataError(
            f'{path}: YAML needs PyYAML: pip install "clipdepth-plugin[train]", or give JSON'
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({error})") from error
