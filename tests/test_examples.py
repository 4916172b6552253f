"""Every example runs as a user would run it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny.depth_png import read_depth_png
from tests.tiny.table import BY_NAME

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo writes."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def runs(demo_folder: Path) -> dict[str, tuple[int, str, str]]:
    """Of each example its exit status, what it prints and its errors; a warning is one, too."""
    names = [name for name in EXAMPLES if "policy" not in name or not BY_NAME["pi0"].absent]
    arguments = {"00_demo.py": [str(demo_folder)]}
    commands = [[f"examples/{name}", *arguments.get(name, [])] for name in names]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.scripts.run_examples", json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(names, json.loads(done.stdout), strict=True))


def said_by(name: str, runs: dict[str, tuple[int, str, str]]) -> str:
    """What an example prints."""
    status, said, errors = runs[name]
    assert status == 0, errors
    return said


def test_demo(runs: dict[str, tuple[int, str, str]], demo_folder: Path) -> None:
    said = said_by("00_demo.py", runs)
    assert "bit for bit what it was alone" in said
    *_, coffee, motorcycle, table_top, opened, seconds = said.splitlines()
    assert re.fullmatch(r"coffee +[\d.]+ to [\d.]+ m", coffee)
    for line in (motorcycle, table_top):
        assert re.fullmatch(r"\w+ +.* m; AbsRel 0\.\d+, best constant 0\.\d+", line)
    assert Path(opened.removeprefix("Open ")).stat().st_size > 10_000
    assert re.fullmatch(r"[\d.]+ seconds", seconds)
    for name, shape in (
        ("coffee", (400, 600)),
        ("motorcycle", (500, 741)),
        ("table_top", (240, 320)),
    ):
        assert read_depth_png(demo_folder / f"{name}.depth.png").shape == shape
        assert (demo_folder / f"{name}.colour.png").stat().st_size > 10_000


def test_attach_to_vlm(runs: dict[str, tuple[int, str, str]]) -> None:
    said = said_by("01_attach_to_vlm.py", runs)
    assert "The same text: True" in said
    assert "Depth (1, 1, 32, 32)" in said


def test_torch_module(runs: dict[str, tuple[int, str, str]]) -> None:
    said = said_by("02_torch_module.py", runs)
    (losses,) = re.findall(r"([\d.]+) -> ([\d.]+)", said)
    assert float(losses[1]) < 0.7 * float(losses[0])
    assert "Gradients in the tower: False" in said


@pytest.mark.skipif(BY_NAME["pi0"].absent, reason="this transformers has no PI0")
def test_depth_beside_a_policy(runs: dict[str, tuple[int, str, str]]) -> None:
    said = said_by("04_depth_beside_a_policy.py", runs)
    assert "The same 8 actions: True" in said
    assert len(re.findall(r"Camera \d: [\d.]+ to [\d.]+ m", said)) == 3


def test_depth_tokens(runs: dict[str, tuple[int, str, str]]) -> None:
    said = said_by("05_depth_tokens.py", runs)
    assert said.count("The same") == said.count("True") == 3
    assert "x, y, z of each: (4, 5)" in said
    assert "Gradients in the host: False" in said
    (losses,) = re.findall(r"Loss ([\d.]+) -> ([\d.]+)", said)
    assert float(losses[1]) < float(losses[0]) - 0.5  # a frozen, random language model


def test_added_latency(runs: dict[str, tuple[int, str, str]]) -> None:
    noise, taps, depth = said_by("03_added_latency.py", runs).splitlines()
    assert noise.startswith("Noise floor")
    assert taps.startswith("Added by the taps alone, for fast: ")
    assert depth.startswith("Added by depth from fast, eager: ")
