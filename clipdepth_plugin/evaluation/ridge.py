"""Ridge regression from streaming normal equations, on any subset of blocks of features.

Axes: N rows, F features (L blocks of K), M rows to score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError

_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A linear function of some blocks.

    Attributes:
        blocks: The blocks it reads.
        weights_LK: Its weights on the raw features of each.
        bias: Its constant.
    """

    blocks: tuple[int, ...]
    weights_LK: Tensor
    bias: float

    def __call__(self, x_LMK: Tensor) -> Tensor:
        """(L, M, K) all blocks of M rows -> (M,) float64."""
        y_M = torch.full((x_LMK.shape[1],), self.bias, dtype=torch.float64)
        for block, weights_K in zip(self.blocks, self.weights_LK, strict=True):
            y_M += x_LMK[block] @ weights_K.to(x_LMK.dtype)
        return y_M


class RidgeSums:
    """The normal equations of all blocks together, summed row by row in float64.

    Memory is 8 F^2 bytes and does not grow with the rows.
    """

    def __init__(self, blocks: int, width: int) -> None:
        """Starts empty: ``blocks`` L of ``width`` K."""
        self.blocks, self.width = blocks, width
        size = blocks * width
        self.count = 0
        self._gram_FF = torch.zeros(size, size, dtype=torch.float64)
        self._sum_F = torch.zeros(size, dtype=torch.float64)
        self._cross_F = torch.zeros(size, dtype=torch.float64)
        self._sum_y = 0.0

    def add(self, x_NLK: Tensor, y_N: Tensor) -> None:
        """Adds rows: features (N, L, K) and targets (N,), any float dtype."""
        x_NF, y_N = x_NLK.flatten(1).double(), y_N.double()
        self.count += len(y_N)
        self._gram_FF.addmm_(x_NF.T, x_NF)
        self._sum_F += x_NF.sum(dim=0)
        self._cross_F += y_N @ x_NF
        self._sum_y += float(y_N.sum())

    @property
    def mean_y(self) -> float:
        """Mean of the targets."""
        return self._sum_y / self.count if self.count else 0.0

    def fit(self, blocks: Sequence[int], ridge: float) -> RidgeFit:
        """Least squares on standardised features plus ridge * |weights|^2, in closed form.

        Args:
            blocks: The blocks to read.
            ridge: Penalty in units of the features' variance, 1 each.

        Returns:
            The fit; features that never vary get weight 0.

        Raises:
            DataError: The penalty is too small for features that depend on each other.
        """
        columns_F = torch.cat([torch.arange(b * self.width, (b + 1) * self.width) for b in blocks])
        mean_F = self._sum_F[columns_F] / self.count
        covariance_FF = self._gram_FF[columns_F][:, columns_F] / self.count
        covariance_FF -= torch.outer(mean_F, mean_F)
        variance_F = covariance_FF.diagonal().clamp_min(0)
        varies_F = variance_F > _SMALLEST_VARIANCE
        inverse_F = torch.where(varies_F, variance_F.clamp_min(_SMALLEST_VARIANCE).rsqrt(), 0.0)
        correlation_FF = covariance_FF * inverse_F * inverse_F[:, None]
        correlation_FF.diagonal().add_(ridge)
        target_F = (self._cross_F[columns_F] / self.count - mean_F * self.mean_y) * inverse_F
        factor_FF = _cholesky(correlation_FF, ridge)
        standardised_F = torch.cholesky_solve(target_F[:, None], factor_FF)[:, 0]
        weights_F = standardised_F * inverse_F
        bias = self.mean_y - float(weights_F @ mean_F)
        return RidgeFit(tuple(blocks), weights_F.view(len(blocks), self.width), bias)


def _cholesky(matrix_FF: Tensor, ridge: float) -> Tensor:
    factor_FF: Tensor
    factor_FF, failed = torch.linalg.cholesky_ex(matrix_FF)
    if int(failed):
        raise DataError(
            f"--ridge {ridge:g} is too small for these tokens: some are linear functions of others "
            "(few or similar patches), and the regression has no unique solution; give a larger "
            "one (the default is 0.01), or more pictures"
        )
    return factor_FF
