"""The hosts and presets that are exported, and how: by the tests, and by tests.scripts.export_table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading.demo import load_demo_tower
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.exporting.export import ExportResult, export
from clipdepth_plugin.exporting.plan import ExportSettings
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
    if name == "demo":
        size, host = (42, 56), load_demo_tower(random_weights=True)
    else:
        size, host = (32, 32), BY_NAME[name].host()
    return host, Preprocessing(*HALF_NORMALISATION, size, "squash")


def make_pair(name: str, preset: str, **options: Any) -> tuple[nn.Module, DepthHead, Preprocessing]:
    """A host, a head of a preset, and how the host takes pictures."""
    host, processor = make_host(name)
    return host, small_head(host, **{**PRESETS[preset], **options}), processor


def exported(name: str, preset: str, folder: Path, **settings: Any) -> ExportResult:
    """The export of a host and a head of a preset."""
    host, head, processor = make_pair(name, preset)
    return export(host, head, folder, ExportSettings(**settings), processor=processor)


def worst_of(result: ExportResult) -> float:
    """Of all outputs of all files."""
    return max(x.worst for file in result.card.files.values() for x in file.verified.values())
