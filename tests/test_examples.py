"""Every example runs as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clipdepth_plugin.depth_files import read_depth_png

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_demo(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "00_demo.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "bit for bit what it was alone" in run.stdout
    assert "AbsRel raw" in run.stdout
    depth_HW = read_depth_png(tmp_path / "motorcycle_left.depth.png")
    assert depth_HW.shape == (500, 741)
    assert (tmp_path / "coffee.colour.png").stat().st_size > 10_000
