"""What defines a DepthTokens, and the 3D position embedding that its MLP reads.

Axes: B views, N visual tokens of a view, C numbers of a token that are read, F wavelengths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipdepth_plugin.settings import Channels, Count, GivenMetres, Settings


class DepthTokensConfig(Settings):
    """What defines a ``DepthTokens``."""

    width: Channels
    """Of the host's visual tokens."""
    camera: bool = True
    """Read the point x, y, z: each pass then needs a camera. False: depth alone, of any lens."""
    confidence: bool = False
    """Read the confidence, of a head that predicts it."""
    hidden: Channels = 256
    """Width of the MLP."""
    wavelengths: Count = 8
    """Sines and cosines of each number."""
    shortest: GivenMetres = 0.05
    """The shortest wavelength: metres; for log depth and confidence without a unit."""
    longest: GivenMetres = 20.0
    """The longest; those between are spaced evenly in their logarithm."""

    @property
    def inputs(self) -> int:
        """Of the MLP: ``sines_and_cosines`` of a token."""
        return 2 * self.wavelengths * (1 + 3 * self.camera + self.confidence)


def sines_and_cosines(tokens_BN5: Tensor, config: DepthTokensConfig) -> Tensor:
    """(B, N, 2CF) of float32 depth tokens, as the config says; of what is not known, those of 0."""
    read = [tokens_BN5[..., :1].log()]
    if config.camera:
        read.append(tokens_BN5[..., 2:])
    if config.confidence:
        read.append(tokens_BN5[..., 1:2])
    ends = math.log(config.shortest), math.log(config.longest)
    logs_F = torch.linspace(*ends, config.wavelengths, dtype=torch.float32)
    waves_F = logs_F.to(tokens_BN5.device).exp()
    numbers_BNC = torch.cat(read, dim=-1).nan_to_num(0.0, 0.0, 0.0)
    angles_BNCF = numbers_BNC[..., None] * (2 * math.pi / waves_F)
    return torch.cat([angles_BNCF.sin(), angles_BNCF.cos()], dim=-1).flatten(2)
