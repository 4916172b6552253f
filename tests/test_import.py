"""Importing the package is cheap and starts nothing, and its public surface stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import clipdepth_plugin

HEAVY = ("kornia", "matplotlib", "open_clip", "rich", "timm", "transformers", "triton", "typer")
PROBE = """
import json, sys
from clipdepth_plugin import *
import torch
print(json.dumps({"modules": sorted(sys.modules), "cuda": torch.cuda.is_initialized()}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh Python holds after `import clipdepth_plugin`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("library", HEAVY)
def test_import_loads_no_heavy_library(imported: dict[str, Any], library: str) -> None:
    assert library not in imported["modules"]


@pytest.mark.parametrize("library", ["einops", "pydantic", "torch"])
def test_import_loads_what_the_head_is_made_of(imported: dict[str, Any], library: str) -> None:
    assert library in imported["modules"]


def test_import_does_not_start_cuda(imported: dict[str, Any]) -> None:
    assert imported["cuda"] is False


def test_the_public_names_are_few_and_resolve() -> None:
    names = clipdepth_plugin.__all__
    assert len(names) == len(set(names)) <= 10
    for name in names:
        assert getattr(clipdepth_plugin, name) is not None, name
