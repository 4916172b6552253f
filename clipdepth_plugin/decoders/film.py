"""FiLM: feature-wise linear modulation of tokens by a global context.

FiLM: Visual Reasoning with a General Conditioning Layer, arXiv 1709.07871; as SPACE-CLIP
uses it, arXiv 2601.17657, section 3.2: gamma is the plain factor, not 1 + gamma.

Axes: B views, N tokens, D tower width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class FiLM(nn.Module):
    """gamma(context) * x + beta(context), with (gamma, beta) from a two-layer MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        """Makes the MLP ``Linear(width, hidden) - ReLU - Linear(hidden, 2 * width)``.

        Args:
            width: D, the width of tokens and of the context.
            hidden: Hidden width of the MLP.
        """
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width))

    def forward(self, x_BND: Tensor, context_BD: Tensor) -> Tensor:
        """Modulates (B, N, D) tokens by a (B, D) context; returns (B, N, D)."""
        gamma_BD, beta_BD = self.mlp(context_BD).chunk(2, dim=-1)
        gamma_B1D = rearrange(gamma_BD, "b d -> b 1 d")
        beta_B1D = rearrange(beta_BD, "b d -> b 1 d")
        modulated: Tensor = gamma_B1D * x_BND + beta_B1D
        return modulated
