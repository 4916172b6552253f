"""The hosts and presets that the tests and tests.scripts.export_table export, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import ExportedProgram

from clipdepth_plugin import DepthHead, DepthTower
from clipdepth_plugin.adapters.loading.demo import load_demo_tower
from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.exporting.export import ExportResult, export
from clipdepth_plugin.exporting.graphs import HeadGraph, TowerGraph, cast, export_graph
from clipdepth_plugin.exporting.onnx_format import Onnx
from clipdepth_plugin.exporting.picture import check_picture
from clipdepth_plugin.exporting.plan import OPSET, ExportSettings
from clipdepth_plugin.exporting.verifying import DTYPES, example_inputs, verify
from clipdepth_plugin.runtime.card import Agreement
from tests.tiny.heads import small_head
from tests.tiny.table import BY_NAME

HOSTS = {
    "open_clip": "open_clip ViT-B/16 layout", "hf_clip": "CLIP", "hf_siglip": "SigLIP",
    "dinov2": "DINOv2", "dinov3": "DINOv3", "timm": "timm ViT", "llava": "LLaVA",
    "paligemma": "PaliGemma", "smolvlm": "SmolVLM", "demo": "the demo host",
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "spaceclip": {},
    "fast": {"preset": "fast", "channels": (8, 8, 8), "canonical_focal": 37.3},
    "guided": {
        "preset": "guided", "channels": (8, 8, 8), "stem_channels": 4, "confidence": True,
        "likeness_channels": 4,
    },
}  # fmt: skip


def make_host(name: str) -> tuple[nn.Module, Preprocessing]:
    """A host, and how it takes pictures: the demo host at a size that is not its own."""
    demo = name == "demo"
    host: nn.Module = load_demo_tower(random_weights=True) if demo else BY_NAME[name].host()
    return host, Preprocessing(*HALF_NORMALISATION, (42, 56) if demo else (32, 32), "squash")


def make_pair(name: str, preset: str, **options: Any) -> tuple[nn.Module, DepthHead, Preprocessing]:
    """A host, a head of a preset, and how the host takes pictures."""
    host, processor = make_host(name)
    return host, small_head(host, **{**PRESETS[preset], **options}), processor


def export_with(name: str, preset: str, folder: Path, **settings: Any) -> ExportResult:
    """The export of a host and a head of a preset: all of its files."""
    host, head, processor = make_pair(name, preset)
    return export(host, head, folder, ExportSettings(**settings), processor=processor)


@dataclass(frozen=True)
class Verified:
    """One ONNX file of a host and a head of a preset, compared with PyTorch."""

    model: onnx.ModelProto
    program: ExportedProgram
    doubts: tuple[str, ...]
    found: dict[str, Agreement]

    @property
    def worst(self) -> float:
        """The largest error of any output."""
        return max(one.worst for one in self.found.values())


def verified_file(
    name: str,
    preset: str,
    dtype: str,
    folder: Path,
    kind: type[TowerGraph | HeadGraph] = TowerGraph,
) -> Verified:
    """As ``export`` makes it, without the rest of the folder."""
    host, head, shown = make_pair(name, preset)
    example = torch.zeros(1, 3, *shown.size)
    reference = kind(DepthTower(host, head, example=example))
    graph = kind(DepthTower(host, head, example=example).to(DTYPES[dtype]))
    pixels_B3HW, _ = frames([check_picture()], shown)
    with torch.no_grad():
        inputs = example_inputs(reference, pixels_B3HW[0], 30.0, count=1)
    given = cast(inputs[0], graph.input_names, DTYPES[dtype])
    exported = export_graph(graph, given, dynamic_batch=False)
    written = Onnx().write(exported, folder, OPSET)
    found = verify(written.run, reference, inputs, dtype=dtype, file=name)
    return Verified(onnx.load(written.path), exported.program, written.doubts, found)
