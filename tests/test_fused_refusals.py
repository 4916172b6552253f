"""FusedHead: what it refuses, by name and with what to do."""

from __future__ import annotations

import pytest
from torch import nn

from clipdepth_plugin import TowerFeatures
from clipdepth_plugin.decoders.blocks import ConvNormAct
from clipdepth_plugin.errors import FeaturesError, KernelError
from tests.tiny.fused_heads import make_features, make_head


def test_errors() -> None:
    head = make_head("spaceclip")
    features = make_features(head)
    with pytest.raises(KernelError, match="asked for, but its tensors are on cpu"):
        head.fused(triton=True)(features)
    with pytest.raises(FeaturesError, match="context"):
        head.fused()(TowerFeatures(features.levels, None, features.grid))
    wanting = {k: x.requires_grad_() for k, x in features.levels.items()}
    with pytest.raises(KernelError, match="gives no gradient"):
        head.fused()(TowerFeatures(wanting, features.context, features.grid))


def test_norms_that_cannot_be_folded() -> None:
    head = make_head("fast-batch-norm")
    block = next(one for one in head.modules() if isinstance(one, ConvNormAct))
    block.norm = nn.InstanceNorm2d(8)
    with pytest.raises(KernelError, match=r"has a InstanceNorm2d\(8.*run the plain head"):
        head.fused()
    block.norm = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(
        KernelError, match=r"has a BatchNorm2d.*track_running_stats=False\): run the plain head"
    ):
        head.fused()
