"""results/ladder.py: one run from config to run file, and how many steps fit into a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.results_scripts import load_script
from tests.training.conftest import save_tiny_host

HEADS = ("spaceclip", "dpt", "probe", "fast", "guided", "fast-bins")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """results/ladder.py."""
    return load_script("ladder")


@pytest.fixture(scope="session")
def deep_host(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a random Dinov2 of twelve blocks, which the presets' levels are of."""
    return save_tiny_host(tmp_path_factory.mktemp("deep-host"), seed=0, blocks=12)


@pytest.fixture
def ladder(tmp_path: Path, deep_host: str, tiny_data: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of two steps, and CLIPDEPTH_DATA with the ladder's two sets, both of planes."""
    monkeypatch.setenv("CLIPDEPTH_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(sys, "argv", ["ladder.py", "train"])
    (tmp_path / "sets").mkdir()
    for name in ("libero", "kitchen"):
        (tmp_path / "sets" / name).symlink_to(tiny_data)
    train = {"format": "rgbd", "root": "$CLIPDEPTH_DATA/libero", "split": "train"}
    tree = {
        "run": str(tmp_path / "runs"),
        "host": deep_host,
        "head": {"preset": "fast"},
        "data": {"train": [train]},
        "augment": {"flip": 0.5},
        "cache": {"folder": str(tmp_path / "tokens"), "views": "flip"},
        "steps": 2,
        "batch_size": 2,
        "output_size": [16, 16],
        "logging": {"pictures": 0, "tensorboard": False},
    }
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("name", HEADS)
def test_a_run_says_what_it_was_and_how_good(script: ModuleType, ladder: Path, name: str) -> None:
    run = script.train_and_measure(ladder, "kitchen", name, seed=1, steps=None)
    written = json.dumps(run)
    assert json.dumps(json.loads(written)) == written
    assert (run["data"], run["head"], run["seed"]) == ("kitchen", name, 1)
    assert (run["steps"], run["images"]) == (2, 4)
    assert run["config"]["data"]["train"][0]["root"] == "$CLIPDEPTH_DATA/kitchen"
    assert run["config"]["optimiser"]["lr"] == script.HEADS[name].lr
    assert run["metrics"]["pictures"] == 3
    assert 0 < run["metrics"]["abs_rel"] < 10
    assert run["cpu_seconds"] > 0


def test_a_run_can_be_repeated(script: ModuleType, ladder: Path) -> None:
    runs = [script.train_and_measure(ladder, "libero", "fast", seed, 3) for seed in (0, 0, 1)]
    assert runs[0]["steps"] == 3
    first, again, other = (run["metrics"]["abs_rel"] for run in runs)
    assert first == again
    assert first != other


def test_equal_time_is_that_of_the_published_head(script: ModuleType, tmp_path: Path) -> None:
    def write(name: str, seed: int, **content: Any) -> None:
        path = tmp_path / f"libero-{name}-steps-seed{seed}.json"
        path.write_text(json.dumps(content))

    write("spaceclip-middle", 0, cpu_seconds=90.0, steps=200)
    write("spaceclip-middle", 1, cpu_seconds=110.0, steps=200)
    write("fast", 0, cpu_seconds=12.0, steps=200)
    write("fast", 1, cpu_seconds=18.0, steps=200)
    assert script._steps_in_time(tmp_path, "libero", "fast") == int(100 / (15 / 200))
    with pytest.raises(SystemExit, match="no run of guided on libero yet: run --column steps"):
        script._steps_in_time(tmp_path, "libero", "guided")


def test_what_has_a_file_is_not_run_again(
    script: ModuleType, ladder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, str, int, int | None]]()

    def train(_: Path, data: str, name: str, seed: int, steps: int | None) -> dict[str, Any]:
        asked.append((data, name, seed, steps))
        return {"cpu_seconds": 8.0, "steps": 2, "metrics": {"abs_rel": 0.1}}

    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "train_and_measure", train)
    options = ["--head", "spaceclip-middle", "--head", "fast", "--data", "libero", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["ladder.py", "train", "--config", str(ladder), *options])
    script.main()
    # The published head's own steps are the measure of time, so it has no run of equal time.
    first = [("libero", n, 0, None) for n in ("spaceclip-middle", "fast")]
    assert asked == [*first, ("libero", "fast", 0, 2)]
    script.main()
    assert len(asked) == 3
