"""Exported folders, made once; ``folder`` is a copy to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny.exported import write_exported, write_relative


@pytest.fixture(scope="session")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("metric"))


@pytest.fixture(scope="session")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_relative(tmp_path_factory.mktemp("relative"))


@pytest.fixture
def folder(metric: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(metric, tmp_path / "folder"))
