"""Every public function on values of wrong types: a ClipDepthError, or what the value means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipdepth_plugin import DepthHead, DepthTower, attach, find_towers, load_spaceclip
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.metrics import alignment_scale, boundary_mask, image_metrics
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.geometry import ViewGeometry, depth_to_points
from clipdepth_plugin.latency.audit import audit
from clipdepth_plugin.latency.subject import make_subject, random_heads, subject_from_call
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.training.engine import train

ODD: dict[str, Any] = {
    "none": None,
    "int": 3,
    "negative": -1,
    "huge": 10**30,
    "nan": float("nan"),
    "text": "x" * 5000,
    "null byte": "a\0b",
    "bytes": b"x",
    "empty": [],
    "list": [1],
    "texts": ["a", "b"],
    "dict": {"a": 1},
    "object": object(),
    "type": int,
    "tensor": torch.ones(2, 2),
    "meta": torch.ones(4, device="meta"),
    "array": np.ones(5),
    "true": True,
}
MEANS_SOMETHING = {
    "attach tower none",
    "attach processor none",
    "DepthTower tower none",
    "DepthTower example none",
    "DepthTower focal none",
    "for_host tower none",
    "intrinsics none",
    "focal int",
    "focal none",
    "focal list",
    "size none",
    "original none",
    "picture-preprocessing none",
    "picture-size none",
    "pictures empty",
    "picture-camera none",
    "resize none",
    "resize-to none",
    "resize-to int",
    "range none",
    "range-high none",
    "range-high int",
    "range-low int",
    "batch int",
}
MEAN, VIEW = (0.5,) * 3, (32, 32)


@pytest.fixture
def calls(host: nn.Module, head: DepthHead, make_pixels: Any) -> dict[str, Callable[[Any], Any]]:
    """Name -> a call with one odd argument."""
    torch.manual_seed(0)
    squash = Preprocessing(MEAN, MEAN, VIEW, "squash")
    other = DepthHead(head.config.model_copy(update={"canonical_focal": 60.0})).eval()
    depth_tower = DepthTower(host, other)
    plugin = attach(host, other, processor=squash)
    pixels = make_pixels()[:1]
    host(pixels)
    depth_of, picture = PictureDepth(plugin, squash), Image.new("RGB", (40, 30))
    new = partial(DepthHead, head.config)
    protocol = get_protocol("rgbd")
    image_3HW = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    sample = Sample(image_3HW, torch.ones(1, 4, 4), None, "a")
    map_HW, mask_HW = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool)
    view = ViewGeometry.squashed((9, 9), (3, 3))
    return {
        "load_host": lambda x: load_host(x) if not isinstance(x, str) else load_host("no: such"),
        "load_spaceclip": lambda x: load_spaceclip(x) if len(str(x)) < 255 else load_host("no: a"),
        "attach host": lambda x: attach(x, head),
        "attach head": lambda x: attach(host, x),
        "attach tower": lambda x: attach(host, new().eval(), tower=x).detach(),
        "attach processor": lambda x: attach(host, new().eval(), processor=x).detach(),
        "find_towers": find_towers,
        "DepthTower host": lambda x: DepthTower(x, head),
        "DepthTower head": lambda x: DepthTower(host, x),
        "DepthTower tower": lambda x: DepthTower(host, head, x),
        "DepthTower example": lambda x: DepthTower(host, head, example=x),
        "DepthTower pixels": depth_tower,
        "DepthTower focal": lambda x: depth_tower(pixels, x),
        "DepthHead": DepthHead,
        "for_host": DepthHead.for_host,
        "for_host tower": lambda x: DepthHead.for_host(host, tower=x),
        "forward": plugin,
        "features": plugin.features,
        "tower_pass": plugin.tower_pass,
        "intrinsics": lambda x: plugin.predict(intrinsics=x),
        "focal": lambda x: plugin(pixels, focal_px=x),
        "size": plugin.predict,
        "original": lambda x: plugin.predict(original_sizes=x),
        "picture-plugin": lambda x: PictureDepth(x, squash),
        "picture-preprocessing": lambda x: PictureDepth(plugin, x),
        "picture-size": lambda x: PictureDepth(plugin, squash, input_size=x),
        "pictures": depth_of,
        "picture": lambda x: depth_of([x]),
        "picture-camera": lambda x: depth_of([picture], x),
        "mean": lambda x: Preprocessing(x, MEAN, VIEW),
        "std": lambda x: Preprocessing(MEAN, x, VIEW),
        "view": lambda x: Preprocessing(MEAN, MEAN, x),
        "resize": lambda x: Preprocessing(MEAN, MEAN, VIEW, x),
        "resize-to": lambda x: Preprocessing(MEAN, MEAN, VIEW, "shortest", x),
        "filter": lambda x: Preprocessing(MEAN, MEAN, VIEW, interpolation=x),
        "image": squash.whole_view,
        "points": lambda x: depth_to_points(x, (3, 3, 1, 1)),
        "points-camera": lambda x: depth_to_points(torch.ones(1, 3, 3), x),
        "squashed": lambda x: ViewGeometry.squashed(x, (3, 3)),
        "squashed-view": lambda x: ViewGeometry.squashed((3, 3), x),
        "corner": lambda x: ViewGeometry.cropped((9, 9), x, (3, 3), (3, 3)),
        "crop": lambda x: ViewGeometry.cropped((9, 9), (0, 0), x, (3, 3)),
        "scale": lambda x: ViewGeometry((9, 9), (3, 3), x),
        "offset": lambda x: ViewGeometry((9, 9), (3, 3), (1, 1), x),
        "to_image": view.to_image,
        "view-camera": view.intrinsics,
        "predictor": lambda x: evaluate(x, [], protocol),
        "data": lambda x: evaluate(plugin, x, protocol),
        "sample": lambda x: evaluate(plugin, [x], protocol),
        "protocol": lambda x: evaluate(plugin, [sample], x),
        "batch": lambda x: evaluate(plugin, [sample], protocol, batch_size=x),
        "protocol-name": get_protocol,
        "range": lambda x: get_protocol("rgbd", depth_range=x),
        "range-low": lambda x: get_protocol("rgbd", depth_range=(x, 10)),
        "range-high": lambda x: get_protocol("rgbd", depth_range=(0.1, x)),
        "subject": make_subject,
        "subject-call": lambda x: subject_from_call(host, x),
        "heads": lambda x: random_heads(x, ["fast"]),
        "audit": lambda x: audit(x, {}),
        "train": train,
        "metrics-mask": lambda _: image_metrics(map_HW, map_HW, mask_HW.byte(), mask_HW),
        "boundary-mask": lambda _: boundary_mask(map_HW, mask_HW.byte()),
        "alignment-mask": lambda _: alignment_scale(map_HW, map_HW, mask_HW.long(), "median"),
        "metrics-depth": lambda _: image_metrics(map_HW, map_HW * 0, mask_HW, mask_HW),
        "metrics-infinite": lambda _: image_metrics(map_HW / 0, map_HW, mask_HW, mask_HW),
    }


@pytest.mark.filterwarnings("ignore")
def test_wrong_types(calls: dict[str, Callable[[Any], Any]]) -> None:
    wrong = []
    for call, function in calls.items():
        for name, value in ODD.items():
            label = f"{call} {name}"
            try:
                with torch.no_grad():
                    function(value)
                if label not in MEANS_SOMETHING:
                    wrong.append(f"{label}: taken")
            except ClipDepthError as error:
                if label in MEANS_SOMETHING:
                    wrong.append(f"{label}: {error}")
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{label}: {type(error).__name__}: {error}"[:200])
    assert not wrong, "\n".join(wrong)
