"""Every example runs as a user would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny.depth_png import read_depth_png
from tests.tiny.table import BY_NAME

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, *arguments: str) -> str:
    """What it prints; warnings are errors there, too."""
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_demo(tmp_path: Path) -> None:
    said = run_example("00_demo.py", str(tmp_path))
    assert "bit for bit what it was alone" in said
    assert "AbsRel raw" in said
    depth_HW = read_depth_png(tmp_path / "motorcycle_left.depth.png")
    assert depth_HW.shape == (500, 741)
    assert (tmp_path / "coffee.colour.png").stat().st_size > 10_000


def test_attach_to_vlm() -> None:
    said = run_example("01_attach_to_vlm.py")
    assert "The same text: True" in said
    assert "Depth (1, 1, 32, 32)" in said


def test_torch_module() -> None:
    said = run_example("02_torch_module.py")
    (losses,) = re.findall(r"([\d.]+) -> ([\d.]+)", said)
    assert float(losses[1]) < 0.7 * float(losses[0])
    assert "Gradients in the tower: False" in said


@pytest.mark.skipif(BY_NAME["pi0"].absent, reason="this transformers has no PI0")
def test_depth_beside_a_policy() -> None:
    said = run_example("04_depth_beside_a_policy.py")
    assert "The same 8 actions: True" in said
    assert len(re.findall(r"Camera \d: [\d.]+ to [\d.]+ m", said)) == 3


def test_added_latency() -> None:
    lines = run_example("03_added_latency.py").splitlines()
    noise, taps, depth = (line for line in lines if not line.startswith("Others took"))
    assert noise.startswith("Noise:")
    assert taps.startswith("Tapping alone, for fast, adds ")
    assert depth.startswith("Depth by fast (eager) adds ")
