"""Metric depth from the vision tower that a multimodal model already runs.

head = DepthHead.from_pretrained("path-or-hub-id")
with attach(host, head) as plugin:
    out = host.generate(**inputs)
    metres = plugin.depth  # (B, 1, H, W) float32, metres
"""

from clipdepth_plugin.adapters.towers import find_towers
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin, attach
from clipdepth_plugin.weights.spaceclip import load_spaceclip

__all__ = [
    "ClipDepthError",
    "DepthHead",
    "DepthPlugin",
    "HeadConfig",
    "TowerFeatures",
    "attach",
    "find_towers",
    "load_spaceclip",
]
