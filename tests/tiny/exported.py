"""Exported folders of tiny networks, as ``clipdepth export`` lays them out."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, DepthTower
from clipdepth_plugin.decoders.blocks import resize
from tests.tiny.heads import small_head

SIDE = 64
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FOCAL = 50.0
CARD: dict[str, Any] = {
    "format": "clipdepth-export/1",
    "mean": MEAN,
    "std": STD,
    "size": [SIDE, SIDE],
    "check": {"picture": "check.png", "depth": "check.npy", "tolerance": 1e-3},
}


@functools.cache
def tower() -> nn.Module:
    """Patches of 8: maps of heads have twice the input's size."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
    )
    model: nn.Module = CLIPVisionModel(config)
    return model.eval()


@functools.cache
def head() -> DepthHead:
    """With a canonical camera and confidence."""
    options: dict[str, Any] = {"preset": "fast", "channels": (8, 8, 8)}
    return small_head(tower(), **options, canonical_focal=FOCAL, confidence=True)


class _Graph(nn.Module):
    def __init__(self, depth_tower: DepthTower) -> None:
        super().__init__()
        self.depth_tower = depth_tower

    def forward(self, pixels: Tensor, focal: Tensor) -> tuple[Tensor, ...]:
        seen, *maps = self.depth_tower(pixels, focal)
        return *seen.values(), *maps


def write_exported(folder: Path) -> Path:
    """Of ``tower`` and ``head``; one picture a run."""
    depth_tower = DepthTower(tower(), head(), native=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(depth_tower).eval(),
            (torch.zeros(1, 3, SIDE, SIDE), torch.full((1,), FOCAL)),
            folder / "tower_depth.onnx",
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["pixel_values", "focal_px"],
            output_names=list(depth_tower.output_names),
        )
    with torch.no_grad():
        _, depth_1BHW, _ = depth_tower(checked_pixels())
    said = {**CARD, "units": "metres", "canonical_focal": FOCAL, "confidence": True}
    _finish(folder, said, resize(depth_1BHW, (SIDE, SIDE)))
    return folder


def write_relative(folder: Path) -> Path:
    """Exp of the pixels' mean as inverse depth, for any number of pictures; and a host alone."""
    for name, last in (("tower_depth.onnx", "Exp"), ("tower.onnx", "Identity")):
        steps = [
            helper.make_node("ReduceMean", ["pixels"], ["grey"], axes=[1], keepdims=1),
            helper.make_node(last, ["grey"], ["depth"]),
        ]
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ("n", 3, SIDE, SIDE))
        depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)
        opset = [helper.make_opsetid("", 13)]
        graph = helper.make_graph(steps, "depth", [pixels], [depth])
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / name)
    _finish(folder, {**CARD, "units": "inverse depth"}, checked_pixels().mean(1, True).exp())
    return folder


def checked_pixels() -> Tensor:
    """(1, 3, H, W): the picture with expected depth."""
    rgb_3HW = torch.from_numpy(np.array(picture(7, SIDE, SIDE))).permute(2, 0, 1) / 255
    return ((rgb_3HW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


def _finish(folder: Path, card: Mapping[str, Any], depth_11HW: Tensor) -> None:
    picture(7, SIDE, SIDE).save(folder / "check.png")
    np.save(folder / "check.npy", depth_11HW[0, 0].numpy())
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")
    }
    rewrite(folder, {**card, "files": {name: {"sha256": one} for name, one in hashes.items()}})


def rewrite(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes depth.json."""
    (folder / "depth.json").write_text(json.dumps(card))


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Random and smooth."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
