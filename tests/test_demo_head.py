"""What is said of the shipped head is what its run files say: results/, its card, README."""

from __future__ import annotations

import statistics
from types import ModuleType
from typing import Any

import pytest
import torch

from clipdepth_plugin.weights.shipped import DEMO_HEAD
from tests.results_scripts import ROOT, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """results/demo_head.py."""
    return load_script("demo_head")


def test_the_page_is_made_from_the_run_files(script: ModuleType) -> None:
    text = (ROOT / "results" / "demo_head.md").read_text(encoding="utf-8")
    assert script.whole_file(script.found()) == text
    # The head's own card has the same figures.
    assert text.partition("\n\n")[2].strip() in (DEMO_HEAD / "README.md").read_text("utf-8")


def test_readme_says_what_the_run_files_say(script: ModuleType) -> None:
    runs = script.found()
    seeds = [run for name, run in runs.items() if name.startswith(script.SHIPPED)]
    assert len(seeds) == 3

    def figures(data: str, key: str = "abs_rel") -> tuple[float, float]:
        values = [run[data]["means"]["none"][key] for run in seeds]
        return statistics.mean(values), statistics.stdev(values)

    def ridge(data: str) -> float:
        return float(runs["ridge"][data]["means"]["none"]["abs_rel"])

    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (libero, libero_spread), (kitchen, kitchen_spread) = figures("libero"), figures("kitchen")
    confident = [run["libero"]["calibration"]["calibration_error"] for run in seeds]
    for figure in (
        f"AbsRel {libero:.3f} ± {libero_spread:.3f} on held-out rendered table-tops",
        f"(a ridge on the same tokens and mixture {ridge('libero'):.3f})",
        f"{kitchen:.3f} ± {kitchen_spread:.3f} on a real kitchen that it never saw",
        f"({ridge('kitchen'):.3f})",
        f"it has {figures('tum')[0]:.3f} ({ridge('tum'):.3f})",
        f"{figures('hololens')[0]:.3f} ({ridge('hololens'):.3f})",
        f"{figures('real_mix')[0]:.3f} ({ridge('real_mix'):.3f})",
        f"(expected calibration error {statistics.mean(confident):.3f})",
    ):
        assert figure in said, figure


def test_the_constant_is_the_mixtures_median(script: ModuleType) -> None:
    parts = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([9.0])]
    assert script.weighted_median(parts, [1, 1]) == 2.0
    assert script.weighted_median(parts, [1, 4]) == 9.0
    runs: dict[str, Any] = script.found()
    constants = {runs["ridge"][data]["baseline"]["depth"] for data in script.TEST_SETS}
    assert len(constants) == 1
