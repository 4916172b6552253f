"""What is said of the shipped head is what its run files say: results/, its card."""

from __future__ import annotations

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


def test_the_constant_is_the_mixtures_median(script: ModuleType) -> None:
    parts = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([9.0])]
    assert script.weighted_median(parts, [1, 1]) == 2.0
    assert script.weighted_median(parts, [1, 4]) == 9.0
    runs: dict[str, Any] = script.found()
    constants = {runs["ridge"][data]["baseline"]["depth"] for data in script.TEST_SETS}
    assert len(constants) == 1
