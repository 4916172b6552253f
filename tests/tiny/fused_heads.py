"""Heads of every preset and option that FusedHead has a form of, and a stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.fused.graphs import GraphCache, Recording
from clipdepth_plugin.settings import STORED

COMPACT: dict[str, Any] = {"channels": (16, 12, 8), "film_hidden": 8}
DUAL: dict[str, Any] = {"channels": (16, 12, 8, 8), "film_hidden": 8}
MEASURED: dict[str, Any] = {
    "points": 9,
    "left_out": 0,
    "pictures": 3,
    "groups": 3,
    "measured": (0.5, 4.0),
}
HEADS: dict[str, dict[str, Any]] = {
    "spaceclip": {**DUAL, "activation": "softplus"},
    "spaceclip-log": {**DUAL, "activation": "log"},
    "spaceclip-middle": {**DUAL, "preset": "spaceclip-middle", "activation": "softplus"},
    "no-film": {**DUAL, "film": False, "activation": "log"},
    "no-structural": {**DUAL, "structural": False, "activation": "log"},
    "bins": {**DUAL, "activation": "bins"},
    "log-confidence": {**DUAL, "activation": "log", "confidence": True},
    "group-norm": {**DUAL, "norm": "group", "activation": "log"},
    "no-norm": {**DUAL, "norm": "none", "activation": "log"},
    "fast": {**COMPACT, "preset": "fast"},
    "fast-group-norm": {**COMPACT, "preset": "fast", "norm": "group"},
    "fast-batch-norm": {**COMPACT, "preset": "fast", "norm": "batch"},
    "fast-bins-confidence": {**COMPACT, "preset": "fast", "activation": "bins", "confidence": True},
    "fast-neither": {**COMPACT, "preset": "fast", "film": False, "structural": False},
    "guided": {**COMPACT, "preset": "guided", "stem_channels": 8},
    "guided-batch-norm": {**COMPACT, "preset": "guided", "stem_channels": 8, "norm": "batch"},
    "guided-group-norm": {**COMPACT, "preset": "guided", "stem_channels": 8, "norm": "group"},
    "guided-wide-join": {**COMPACT, "preset": "guided", "stem_channels": 8, "join_kernel": 3},
    "guided-confidence": {**COMPACT, "preset": "guided", "stem_channels": 8, "confidence": True},
    "fast-calibrated": {**COMPACT, "preset": "fast", "confidence": True, "confidence_scale": 2.5},
    "spaceclip-calibrated": {**DUAL, "confidence": True, "confidence_scale": 4.0},
    "fast-measured": {
        **COMPACT,
        "preset": "fast",
        "confidence": True,
        "calibration": {"scale": 1.7, "slope": 0.8, "pivot": 1.3, **MEASURED},
    },
    "spaceclip-measured": {**DUAL, "calibration": {"scale": 0.6, **MEASURED}},
}
EACH_HEAD = pytest.mark.parametrize("name", HEADS)


def make_head(name: str) -> DepthHead:
    """A head whose norms are not at their initial values: folding them must matter."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    fields = {"width": 24, **HEADS[name]}
    head = DepthHead(HeadConfig.model_validate(fields, context=STORED)).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(module, nn.Linear):  # FiLM that begins as the identity would hide its MLP
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.Conv2d) and head.config.norm == "none":  # its bias begins at 0
            assert module.bias is not None
            nn.init.normal_(module.bias, std=0.1, generator=generator)
            if not module.weight.any():
                nn.init.normal_(module.weight, std=0.1, generator=generator)
    return head


def make_features(
    head: DepthHead, grid: tuple[int, int] = (3, 5), batch: int = 2, prefix: int = 1
) -> TowerFeatures:
    """Tokens as hooks give them: slices behind prefix tokens."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config, tokens = head.config, prefix + grid[0] * grid[1]
    levels = {k: random(batch, tokens, config.width)[:, prefix:] for k in config.levels}
    context = random(batch, config.width) if config.film else None
    pixels = random(batch, 3, 16 * grid[0], 16 * grid[1]) if head.reads_pixels else None
    return TowerFeatures(levels, context, grid, pixels)


class Tape:
    """Stands in for CUDA graphs: notes what is recorded, and replays by running again."""

    def __init__(self) -> None:
        self.recorded, self.replayed, self.recording = 0, 0, False

    def __call__(self, call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Recording:
        self.recorded += 1

        def run() -> list[Tensor]:
            self.recording = True
            try:
                return call()
            finally:
                self.recording = False

        outputs = run()

        def replay() -> None:
            self.replayed += 1
            for output, again in zip(outputs, run(), strict=True):
                output.copy_(again)

        return Recording(inputs, outputs, replay)


def in_graphs(graphs: GraphCache, monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Has a cache record on the CPU; its tape."""
    tape = Tape()
    monkeypatch.setattr(graphs, "applies", lambda tensors: not tape.recording)
    monkeypatch.setattr(graphs, "_record", tape)
    return tape
