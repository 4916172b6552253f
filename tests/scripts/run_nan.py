"""A fused head on NaN tokens; run by tests/test_kernels.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import json
import sys

import torch

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures

config = HeadConfig(
    width=16,
    preset="fast",
    channels=(16, 16, 16),
    film_hidden=16,
    activation="relu",
    semantic_levels=(1,),
    structural_levels=(0,),
)
levels = {level: torch.full((1, 4, 16), torch.nan) for level in config.levels}
with torch.no_grad():
    head = DepthHead(config).eval().fused(triton=True)
    sys.stdout.write(
        json.dumps(bool(head(TowerFeatures(levels, torch.zeros(1, 16), (2, 2))).isnan().all()))
    )
