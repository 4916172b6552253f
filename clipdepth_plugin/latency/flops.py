"""Operations and parameters: what does not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_gflops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call in 1e9, a multiply-add being two.

    By torch's own counter: matrix products and convolutions, no element-wise operations.
    """
    # Written out, attention is made of products that the counter knows on every device.
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel([SDPBackend.MATH]),
        torch.no_grad(),
    ):
        call()
    return int(counter.get_total_flops()) / 1e9


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Numbers in the parameters of the modules, each once."""
    found = {id(p): p for module in modules for p in module.parameters()}
    return sum(parameter.numel() for parameter in found.values())


def parameter_mib(module: nn.Module) -> float:
    """Memory of a module's parameters and buffers in MiB."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(x.numel() * x.element_size() for x in tensors) / 2**20
