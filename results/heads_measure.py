"""What is measured of an entry: errors on the test sets, and cost beside the tower."""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from heads_entries import ENTRIES, make_config
from heads_peers import MobileNetDecoder
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin import DepthHead, DepthPlugin
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.data import DataConfig, Sample, open_dataset
from clipdepth_plugin.environment import Environment
from clipdepth_plugin.evaluation.evaluate import Means, evaluate
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.resources import keep_freed_memory
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.subject import make_subject

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_pictures"
IN_DOMAIN = ("libero", "rooms")
NEVER_SEEN = ("kitchen", "real_mix", "real_mix2", "motorcycle")


class Figures(BaseModel):
    """One test set's figures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    images: int
    head: Means
    """Alignment -> metric -> mean over the pictures."""
    constant: Means
    """The same of the set's median depth; median-aligned it is each picture's own median."""
    ece: float | None
    """Expected calibration error; None without a confidence."""


class Run(BaseModel):
    """A run file: one entry, trained with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["clipdepth-heads/1"] = "clipdepth-heads/1"
    entry: str
    seed: int
    steps: int
    batch_size: int
    side: int
    """Height and width of the tower's input."""
    validation: float | None
    """AbsRel on the validation sets, by which the weights were chosen; None for a closed form."""
    sets: dict[str, Figures]
    config: dict[str, Any]
    """Of the training run."""
    environment: Environment


def open_set(name: str) -> Iterable[Sample]:
    """A test set."""
    if name == "motorcycle":
        return [motorcycle()]
    return open_dataset(DataConfig(format="rgbd", root=f"$CLIPDEPTH_DATA/{name}", split="test"))


def motorcycle() -> Sample:
    """The picture of the demo with its true depth."""
    demo = runpy.run_path(str(DEMO / "motorcycle.py"))
    image, depth_HW = demo["load"](demo["skimage_data"]())
    rgb_HW3, focal = np.array(image), demo["FOCAL_PX"]
    depth_1HW = torch.from_numpy(depth_HW).float().nan_to_num(0.0)[None]
    return Sample(
        torch.from_numpy(rgb_HW3).permute(2, 0, 1),
        depth_1HW,
        (focal, focal, *demo["CENTRE"]),
        "motorcycle",
    )


def measure(
    head: DepthHead, host: str, names: Sequence[str] = (*IN_DOMAIN, *NEVER_SEEN)
) -> dict[str, Figures]:
    """Test set -> the head's figures on it, told the focal length where it is known."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_host(host)
    plugin = DepthPlugin(loaded.model.to(device), head.to(device).eval())
    predict = HeadPredictor(plugin, loaded.preprocessing)
    found = {}
    for name in names:
        result = evaluate(predict, open_set(name), get_protocol("rgbd"), batch_size=8)
        calibration = result.calibration
        found[name] = Figures(
            images=len(result.rows),
            head=result.means,
            constant=result.baseline.means,
            ece=None if calibration is None else calibration.calibration_error,
        )
    return found


def measure_cost(side: int, rounds: int, command: tuple[str, ...], host: str = "demo") -> Audit:
    """Every entry's time beside the host's tower, in one interleaved run; random weights."""
    keep_freed_memory()
    loaded = load_host(host)
    subject = make_subject(loaded.model, label=loaded.label, size=(side, side))
    heads: dict[str, DepthHead] = {}
    for name in ENTRIES:
        new = make_config(name, seed=0, steps=1, batch=1, side=side).head
        heads[name] = DepthHead.for_host(loaded.model, new.preset, **new.options).eval()
    separate = {}
    for name in (name for name, entry in ENTRIES.items() if entry.separate):
        network = cast("MobileNetDecoder", heads.pop(name).decoder)
        separate[name] = lambda network=network: network.estimate(subject.inputs.pixels)
    return audit(subject, heads, separate=separate, method=Method(rounds=rounds), command=command)
