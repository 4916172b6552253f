"""Exported folders of a tiny tower, as ``clipdepth export`` lays them out."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, DepthTower
from clipdepth_plugin.maps.alignment import inverse_of
from tests.tiny.heads import small_head

SIDE = 64
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FOCAL = 50.0


@functools.cache
def tower() -> nn.Module:
    """Patches of 16, so that maps of heads have the input's size."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=16,
    )
    return CLIPVisionModel(config).eval()


@functools.cache
def head(*, metric: bool) -> DepthHead:
    """With a canonical camera and confidence; or of relative depth."""
    options: dict[str, Any] = {"preset": "fast", "channels": (8, 8, 8)}
    if metric:
        return small_head(tower(), **options, canonical_focal=FOCAL, confidence=True)
    return small_head(tower(), **options, metric=False)


class _Graph(nn.Module):
    def __init__(self, depth_tower: DepthTower, *, metric: bool) -> None:
        super().__init__()
        self.depth_tower, self.metric = depth_tower, metric

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        seen, depth_B1HW, *confidence = self.depth_tower(*inputs)
        depth_B1HW = depth_B1HW if self.metric else inverse_of(depth_B1HW)
        return *seen.values(), depth_B1HW, *confidence


def write_exported(folder: Path, *, metric: bool = True, host_only: bool = False) -> Path:
    """One picture a run where metric, else any number."""
    depth_tower = DepthTower(tower(), head(metric=metric))
    pixels, focal = torch.zeros(1, 3, SIDE, SIDE), torch.full((1,), FOCAL)
    inputs: dict[str, Tensor] = {"pixel_values": pixels}
    shapes: Any = {"pixel_values": {}, "focal_px": {}}
    if metric:
        inputs["focal_px"] = focal
    else:
        inputs["pixel_values"] = pixels.repeat(2, 1, 1, 1)
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    networks: dict[str, tuple[nn.Module, Mapping[str, Tensor], list[str]]] = {
        "tower_depth.onnx": (
            _Graph(depth_tower, metric=metric),
            inputs,
            list(depth_tower.output_names),
        )
    }
    if host_only:
        names = [one for one in depth_tower.output_names if one not in ("depth", "confidence")]
        only = {"pixel_values": pixels}
        networks["tower.onnx"] = (_Seen(tower()), only, names)
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (module, given, outputs) in networks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(given.values()),
                folder / name,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=list(given),
                output_names=outputs,
                dynamic_shapes=None if metric else (shapes,),
            )
        files[name] = {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
    card: dict[str, Any] = {
        "format": "clipdepth-export/1",
        "units": "metres" if metric else "inverse depth",
        "mean": MEAN,
        "std": STD,
        "size": [SIDE, SIDE],
        "confidence": metric,
        "files": files,
        "check": {"picture": "check.png", "depth": "check.npy", "tolerance": 1e-3},
    }
    if metric:
        card["canonical_focal"] = FOCAL
    picture(7, SIDE, SIDE).save(folder / "check.png")
    rewrite(folder, card)
    rgb_3HW = torch.from_numpy(np.array(picture(7, SIDE, SIDE))).permute(2, 0, 1) / 255
    pixels = (rgb_3HW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        _, depth_B1HW, *_ = depth_tower(pixels[None])
    depth_B1HW = depth_B1HW if metric else inverse_of(depth_B1HW)
    np.save(folder / "check.npy", depth_B1HW[0, 0].numpy())
    return folder


class _Seen(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(pixels, return_dict=False))


def rewrite(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes depth.json."""
    (folder / "depth.json").write_text(json.dumps(card))


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Random and smooth."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
