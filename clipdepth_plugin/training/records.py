"""Records of the token cache: a batch's features and truth as tensors by name, and back.

Axes: B records, L levels, N patch tokens, D width, H W a depth map's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipdepth_plugin.features import TowerFeatures

WEIGHT = "weight"

Records = dict[str, Tensor]
"""``token_cache`` says which."""


def to_records(
    features: TowerFeatures,
    depth_B1HW: Tensor,
    intrinsics_B4: Tensor,
    weight_B1HW: Tensor | None = None,
    *,
    levels: Sequence[int],
    dtype: torch.dtype,
) -> Records:
    """Records of a batch, on the CPU.

    Tokens and pixels are in ``dtype``, weights uint8, everything else float32.
    """
    tokens_BLND = torch.stack([features.levels[level] for level in levels], dim=1)
    records = {"tokens": tokens_BLND.to(dtype), "depth": depth_B1HW, "intrinsics": intrinsics_B4}
    if weight_B1HW is not None:
        records[WEIGHT] = weight_B1HW
    if features.context is not None:
        records["context"] = features.context.float()
    if features.pixels is not None:
        records["pixels"] = features.pixels.to(dtype)
    return {name: x.cpu().contiguous() for name, x in records.items()}


def features_of(records: Records, levels: Sequence[int], grid: tuple[int, int]) -> TowerFeatures:
    """The features of B records; ``levels`` are the records', in order."""
    tokens = {level: records["tokens"][:, i] for i, level in enumerate(levels)}
    return TowerFeatures(tokens, records.get("context"), grid, records.get("pixels"))
