"""The Makefile's environments: what pip prints stays in a log, which is named when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE = """#!/bin/sh
# A Python whose environments hold a pip that fails.
case "$*" in
*"-m venv --clear"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; touch "$4/bin/activate" ;;
*"pip install"*) echo "a great deal of text"; echo "ERROR: no such package"; echo "$*"; exit 1 ;;
*) echo 3.99 ;;
esac
"""


@pytest.mark.parametrize(
    ("target", "folder", "extras"),
    [
        ("demo", ".venv-demo", "demo"),
        ("app", ".venv-demo", "demo,app"),
        ("setup", ".venv", "dev"),
    ],
)
def test_a_failing_pip_names_its_log(target: str, folder: str, extras: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", target, f"PYTHON={python}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    log = tmp_path / folder / "install.log"
    assert done.returncode != 0
    assert "a great deal of text" not in done.stdout + done.stderr
    assert "ERROR: no such package" in done.stderr
    assert f"pip failed; all that it printed is in {folder}/install.log" in done.stderr
    assert log.read_text().count("a great deal of text") == 2
    assert f".[{extras}]" in log.read_text()
    assert not [*(tmp_path / folder).glob(".ready-*")]
