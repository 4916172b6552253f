"""Ridge regression from streaming normal equations, on any subset of blocks of features.

Axes: N rows, L blocks of K features, F features of the L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError

_SMALLEST_VARIANCE = 1e-12


class RidgeSums:
    """The normal equations of all blocks together, summed row by row in float64.

    Memory is 8 F^2 bytes and does not grow with the rows.
    """

    def __init__(self, blocks: int, width: int) -> None:
        """Starts empty: ``blocks`` L of ``width`` K."""
        self._width = width
        # The last two columns are the target and a constant 1.
        self._products = torch.zeros((blocks * width + 2,) * 2, dtype=torch.float64)

    def add(self, x_NLK: Tensor, y_N: Tensor) -> None:
        """Adds rows: features (N, L, K) and targets (N,), any float dtype."""
        y_N1 = y_N.double()[:, None]
        rows = torch.cat([x_NLK.flatten(1).double(), y_N1, torch.ones_like(y_N1)], dim=1)
        self._products.addmm_(rows.T, rows)

    @property
    def count(self) -> int:
        """Rows added."""
        return int(self._products[-1, -1])

    def fit(self, blocks: Sequence[int], ridge: float) -> tuple[Tensor, float]:
        """Least squares on standardised features plus ridge * |weights|^2, in closed form.

        Args:
            blocks: The L blocks to read.
            ridge: Penalty in units of the features' variance, 1 each.

        Returns:
            The weights (L, K) on the raw features, 0 for those that never vary, and the constant.

        Raises:
            DataError: The penalty is too small for features that depend on each other.
        """
        read = [torch.arange(b * self._width, (b + 1) * self._width) for b in blocks]
        columns = torch.cat([*read, torch.tensor([-2])])
        mean = self._products[-1, columns] / self.count
        covariance = self._products[columns][:, columns] / self.count - torch.outer(mean, mean)
        variance_F = covariance.diagonal()[:-1]
        varies_F = variance_F > _SMALLEST_VARIANCE
        inverse_F = torch.where(varies_F, variance_F.clamp_min(_SMALLEST_VARIANCE).rsqrt(), 0.0)
        correlation_FF = covariance[:-1, :-1] * inverse_F * inverse_F[:, None]
        correlation_FF.diagonal().add_(ridge)
        factor_FF, failed = torch.linalg.cholesky_ex(correlation_FF)
        if int(failed):
            raise DataError(
                f"--ridge {ridge:g} is too small for these tokens: some are linear functions of "
                "others (few or similar patches), and the regression has no unique solution; give "
                "a larger one (the default is 0.01), or more pictures"
            )
        target_F = covariance[:-1, -1] * inverse_F
        weights_F = torch.cholesky_solve(target_F[:, None], factor_FF)[:, 0] * inverse_F
        return weights_F.view(len(blocks), self._width), float(mean[-1] - weights_F @ mean[:-1])
