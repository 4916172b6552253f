"""Local model folders: their configs, and whether their weights are safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdepth_plugin.errors import HostError

_HEAD_KEYS = frozenset({"semantic_levels", "structural_levels", "film_hidden"})


def check_no_head(folder: Path, config: Mapping[str, Any]) -> None:
    """Whether a folder is none of our depth heads.

    Raises:
        HostError: It is one.
    """
    if config.keys() >= _HEAD_KEYS:
        raise HostError(f"host {folder}: this is a depth head, not a host; use --head for it")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's config.json.

    Raises:
        HostError: It is missing, or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise HostError(
            f"host {folder}: no config.json and no open_clip_config.json in this folder; give "
            "one that save_pretrained (transformers), open_clip or timm wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HostError(f"host {path}: not a readable JSON file ({error})") from error
    if not isinstance(config, dict):
        raise HostError(f"host {path}: expected a JSON object, got a {type(config).__name__}")
    return config


def require_safetensors(folder: Path, *names: str) -> None:
    """Refuses a folder whose weights are not safetensors: pickles can run code when loaded.

    Args:
        folder: The model's folder.
        names: Accepted file names; one of them must be there.

    Raises:
        HostError: None of them is there.
    """
    if any((folder / name).is_file() for name in names):
        return
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    found = f"it has {', '.join(others)}, which are pickles and not read" if others else "none"
    raise HostError(
        f"host {folder}: no weights in {' or '.join(names)}: {found}. Save the model with "
        "safetensors, or ask for random weights"
    )
