"""Loads a script of results/, which is no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_script(name: str) -> ModuleType:
    """The module results/``name``.py; its siblings are importable while it loads."""
    sys.path.insert(0, str(ROOT / "results"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "results"))
