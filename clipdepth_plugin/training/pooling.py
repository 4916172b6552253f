"""A differentiable sum over processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values_K: Tensor) -> Tensor:
        total_K = values_K.clone()
        dist.all_reduce(total_K)
        return total_K

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total_K = gradients[0].contiguous().clone()
        dist.all_reduce(total_K)
        return total_K


def sum_over_processes(values_K: Tensor) -> Tensor:
    """Sums a tensor over all processes; itself where there is one process.

    Its gradient is the sum of the processes' gradients. So a loss of pooled sums, the same number
    in every process, and ``DistributedDataParallel``, which averages gradients, together give the
    gradient of one process with all the samples.

    Args:
        values_K: The same shape and dtype in every process.

    Returns:
        (K,) the sum, the same everywhere.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values_K
    total_K: Tensor = _SumOverProcesses.apply(values_K)
    return total_K
