"""The shipped head's page and card are made from its measured figures."""

from __future__ import annotations

import json

from clipdepth_plugin.evaluation.report import Report
from clipdepth_plugin.weights.shipped import DEMO_HEAD
from tests.results_scripts import ROOT, load_script


def test_page_and_card_show_the_stored_figures() -> None:
    script = load_script("demo_head")
    stored = json.loads((ROOT / "results" / "demo_head.json").read_text(encoding="utf-8"))
    table = script.page({data: Report.model_validate(report) for data, report in stored.items()})
    page = (ROOT / "results" / "demo_head.md").read_text(encoding="utf-8")
    assert page.partition("\n\n")[2] == table
    assert table.strip() in (DEMO_HEAD / "README.md").read_text(encoding="utf-8")
