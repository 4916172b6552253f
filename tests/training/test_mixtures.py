"""Training on several sets: how much each counts, and which weights are best for all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipdepth_plugin.training.engine import train

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

PLAIN: dict[str, Any] = {"augment": None, "loss": {"ssim": 0.0, "silog": 1.0}}


def in_other_metres(tiny: TinyRuns, factor: float) -> str:
    """The same pictures, all depths ``factor`` times as long."""
    root = tiny.folder / f"times-{factor:g}"
    shutil.copytree(Path(tiny.data), root)
    meta = json.loads((root / "meta.json").read_text())
    meta |= {"depth_scale": 1000 / factor, "max_depth_m": 100.0}
    (root / "meta.json").write_text(json.dumps(meta))
    return str(root)


def test_a_set_without_scale_may_be_in_any(tiny: TinyRuns) -> None:
    """Its metres change no loss; with half a share they do. From a cache as without."""
    metric = dict(tiny.tree("any")["data"]["train"][0])
    common: dict[str, Any] = {**PLAIN, "head": {"options": dict(tiny.exact_head)}, "steps": 3}
    common |= {"batch_size": 4}
    cache = {"folder": str(tiny.folder / "cache"), "dtype": "float32"}
    losses = {}
    for factor in (1.0, 4.0):
        root = in_other_metres(tiny, factor)
        for share in (0.0, 0.5):
            data = {"train": [metric, {**metric, "root": root, "scale_share": share}]}
            name = f"{factor}-{share}"
            train(tiny.config(name, data=data, **common))
            losses[factor, share] = tiny.losses(name)
    assert losses[4.0, 0.0] == pytest.approx(losses[1.0, 0.0], rel=1e-4)
    assert losses[4.0, 0.5] != pytest.approx(losses[1.0, 0.5], rel=1e-3)
    train(tiny.config("cached", data=data, cache=cache, **common))
    assert tiny.losses("cached") == pytest.approx(losses[4.0, 0.5], rel=1e-4)
