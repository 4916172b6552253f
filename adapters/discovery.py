"""Registries that fill themselves: what registers is found by its folder alone."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path


@functools.cache
def import_siblings(module: str, file: str) -> None:
    """Imports every file beside one, once."""
    package = module.rpartition(".")[0]
    for found in pkgutil.iter_modules([str(Path(file).parent)]):
        importlib.import_module(f"{package}.{found.name}")
