"""The readout of results/depth_tokens.py: a small policy head that answers about pairs of patches.

Axes: F frames, N patches, M tokens that are attended to, D tower width, W the readout's width, P
pairs of patches, L their marks (2 P).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from depth_tokens_data import Answers, Frames
from torch import Tensor, nn

from clipdepth_plugin import DepthTokens
from clipdepth_plugin.plugin.depth_tokens_config import DepthTokensConfig

Arm = Literal["rgb", "depth tokens", "depth picture", "true depth tokens"]
ARMS: tuple[Arm, ...] = ("rgb", "depth tokens", "depth picture", "true depth tokens")
STEPS, BATCH, PAIRS = 1200, 16, 16
"""Of training; pairs of each frame of a batch."""


class Attend(nn.Module):
    """One layer: the pairs' queries attend to the frame's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, queries_FPW: Tensor, memory_FMW: Tensor) -> Tensor:
        """The queries after it."""
        found_FPW, _ = self.attend(
            self.norm(queries_FPW), memory_FMW, memory_FMW, need_weights=False
        )
        queries_FPW = queries_FPW + found_FPW
        added_FPW: Tensor = self.mlp(queries_FPW)
        return queries_FPW + added_FPW


class Readout(nn.Module):
    """Answers about pairs of patches: from their own tokens, and from all tokens of the frame.

    All arms have the same parameters. Each token gets ``DepthTokens`` of its ray: the lens is
    known to all. Arms without depth tokens have depth 1 there. A query, made of the two patches'
    tokens, attends to the frame's tokens, merged 2 x 2, in two layers.
    """

    def __init__(self, arm: Arm, tower_width: int, width: int = 128) -> None:
        super().__init__()
        self.arm = arm
        self.project = nn.Linear(tower_width, width)
        self.depth = DepthTokens(DepthTokensConfig(width=width, confidence=True, hidden=width))
        self.kinds = nn.Parameter(0.02 * torch.randn(2, width))
        self.pair = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList([Attend(width), Attend(width)])
        self.answer = nn.Sequential(
            nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 6)
        )

    def forward(self, frames: Frames, marks_FP2: Tensor) -> Answers:
        """The answers."""
        host_FND, picture_FND = frames.host_FND.float(), frames.picture_FND.float()
        five_FN5 = self._five(frames)

        def tokens(pick: Callable[[Tensor], Tensor], kind: int) -> Tensor:
            seen = pick(picture_FND if kind else host_FND)
            out: Tensor = self.project(seen) + self.depth(pick(five_FN5)) + self.kinds[kind]
            return out

        def marked(x_FNC: Tensor) -> Tensor:
            index_FL1 = marks_FP2.flatten(1)[..., None].expand(-1, -1, x_FNC.shape[-1])
            return x_FNC.gather(1, index_FL1)

        memory_FMW, marked_FLW = tokens(merged, 0), tokens(marked, 0)
        if self.arm == "depth picture":
            memory_FMW = torch.cat([memory_FMW, tokens(merged, 1)], dim=1)
            marked_FLW = marked_FLW + tokens(marked, 1)
        ab_FPW = marked_FLW.unflatten(1, (-1, 2)).flatten(2)
        queries_FPW = self.pair(ab_FPW)
        for layer in self.layers:
            queries_FPW = layer(queries_FPW, memory_FMW)
        answer_FP6 = self.answer(torch.cat([queries_FPW, ab_FPW], dim=-1))
        distance_FP, gap_FP, nearer_FP = answer_FP6[..., :3].unbind(-1)
        step_FP3 = F.normalize(answer_FP6[..., 3:], dim=-1)
        return Answers(distance_FP, gap_FP, nearer_FP, step_FP3)

    def _five(self, frames: Frames) -> Tensor:
        if self.arm == "depth tokens":
            return frames.read_FN5
        if self.arm == "true depth tokens":
            return frames.true_FN5
        return at_depth(frames, 1.0)


def merged(x_FNC: Tensor) -> Tensor:
    """The means of 2 x 2 patches."""
    side = round(x_FNC.shape[1] ** 0.5)
    x_FChw = x_FNC.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(x_FChw, 2).flatten(2).transpose(1, 2)


def at_depth(frames: Frames, metres: float) -> Tensor:
    """(F, N, 5): every patch at one depth, on its ray."""
    rays_FN3 = frames.read_FN5[..., 2:] / frames.read_FN5[..., :1] * metres
    ones_FN1 = torch.ones_like(rays_FN3[..., :1])
    return torch.cat([ones_FN1 * metres, ones_FN1, rays_FN3], dim=-1)
