"""Runs exported folders (``clipdepth export``) with onnxruntime, NumPy and Pillow: no torch.

model = runtime.open("folder")
result = model("picture.jpg", focal_px=1400.0)
metres = result.depth  # (H, W) float32, NaN where the tower did not see the picture
"""

from clipdepth_plugin.runtime.card import Card
from clipdepth_plugin.runtime.model import ExportedModel, Result
from clipdepth_plugin.runtime.model import open_folder as open  # noqa: A004

__all__ = ["Card", "ExportedModel", "Result", "open"]
