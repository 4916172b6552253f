"""Other people's heads in the ladder are what they are said to be.

Axes: B views, N patch tokens, D tower width, C channels, H W a map's size, K bins.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from clipdepth_plugin import HeadConfig
from clipdepth_plugin.evaluation.ladder import RUNGS
from clipdepth_plugin.evaluation.peers import PROBE_BINS, DPTHead, LinearProbeHead
from tests.tiny.depth_heads import make_features

WIDTH, GRID = 48, (2, 4)
PEERS = ("dpt", "probe")


def config_of(name: str, width: int = WIDTH) -> HeadConfig:
    return HeadConfig(width=width, preset=RUNGS[name].preset, **RUNGS[name].options)


def shapes(module: nn.Module) -> Counter[tuple[int, ...]]:
    return Counter(tuple(p.shape) for p in module.parameters())


def test_dpt_has_the_parameters_of_depth_anything_v2_small() -> None:
    size_s = DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_hidden_layers": 4,
            "out_indices": [1, 2, 3, 4],
        },
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    with torch.device("meta"):
        theirs = DepthAnythingForDepthEstimation(size_s)
        ours = DPTHead(config_of("dpt", width=384))
    assert shapes(ours) == shapes(theirs.neck) + shapes(theirs.head)


def test_the_probes_upsampling_commutes() -> None:
    """DINOv2 resizes before batch norm and layer; ours after them, and it is the same function."""
    torch.manual_seed(0)
    config = config_of("probe")
    head = LinearProbeHead(config).eval()
    norm = next(m for m in head.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    linear = next(m for m in head.modules() if isinstance(m, nn.Conv2d))
    features = make_features(config, GRID)
    maps = [
        F.layer_norm(features.levels[level], (WIDTH,)).mT.unflatten(-1, GRID)
        for level in config.semantic_levels
    ]
    assert features.context is not None
    maps.append(features.context[:, :, None, None].expand(-1, -1, *GRID))
    size = (4 * GRID[0], 4 * GRID[1])
    x_BCHW = F.interpolate(torch.cat(maps, dim=1), size, mode="bilinear", align_corners=False)
    weights_BKHW = F.relu(linear(norm(x_BCHW))) + 0.1
    depths_K = torch.linspace(*config.depth_range, PROBE_BINS)
    shares_BKHW = weights_BKHW / weights_BKHW.sum(dim=1, keepdim=True)
    expected_BHW = torch.einsum("bkhw,k->bhw", shares_BKHW, depths_K)
    torch.testing.assert_close(head(features)[:, 0], expected_BHW, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(("size", "given"), [((28, 42), (28, 42)), (None, None)])
def test_a_peer_gives_metres_of_the_size_asked_for(
    name: str, size: tuple[int, int] | None, given: tuple[int, int] | None
) -> None:
    config = config_of(name)
    depth_B1HW: Tensor = RUNGS[name].kind(config).eval()(make_features(config, GRID), size)
    own = 16 if name == "dpt" else 4
    assert depth_B1HW.shape == (2, 1, *(given or (own * GRID[0], own * GRID[1])))
    low, high = config.depth_range
    assert low <= depth_B1HW.min()
    assert depth_B1HW.max() <= high


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_metres_are_float32_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    config = config_of(name)
    head = RUNGS[name].kind(config).eval()
    with torch.autocast("cpu", torch.bfloat16):
        depth_B1HW = head(make_features(config, GRID))
    assert depth_B1HW.dtype == torch.float32


@pytest.mark.parametrize("name", PEERS)
def test_all_that_a_peer_counts_as_trained_is_trained(name: str) -> None:
    torch.manual_seed(0)
    config = config_of(name)
    head = RUNGS[name].kind(config).train()
    head(make_features(config, GRID)).log().square().sum().backward()
    idle = [key for key, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
