"""Decides whether an op runs as its Triton kernel or as its PyTorch reference.

None chooses, False is the reference, True must work or fail with the reason. A choice is logged
once for each op; no fallback is silent.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from clipdepth_plugin.errors import KernelError

logger = logging.getLogger(__name__)

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None

Shapes = dict[str, tuple[Tensor, tuple[int, ...]]]
"""A tensor by its name, and the shape it must have."""


def use_triton(
    op: str, device: torch.device, asked: bool | None, *, obstacle: str | None = None
) -> bool:
    """Whether ``op`` runs as a Triton kernel on ``device``, as the caller ``asked``.

    ``obstacle``: why the kernel cannot take these inputs, whatever the machine; None: it can.

    Raises:
        KernelError: Triton was asked for and cannot run; says why.
    """
    if asked is False:
        _log(op, "the PyTorch reference, as asked")
        return False
    obstacle = _obstacle(device) or obstacle
    if asked and obstacle is not None:
        raise KernelError(f"{op}: the Triton kernel was asked for, but {obstacle}")
    _log(op, "its Triton kernel" if obstacle is None else f"the reference: {obstacle}")
    return obstacle is None


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and runs on ``device``."""
    return _obstacle(device) is None


def no_float64(inputs: Iterable[Tensor | None]) -> str | None:
    """Why a kernel that has a backward cannot take these inputs; None: it can."""
    if any(x is not None and x.dtype == torch.float64 for x in inputs):
        return "an input is float64, and the kernel sums in float32"
    return None


def forward_only(inputs: Iterable[Tensor | None]) -> str | None:
    """Why a kernel without a backward cannot take these inputs; None: it can."""
    inputs = tuple(inputs)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return "a gradient is needed, and the kernel gives none"
    return no_float64(inputs)


def check_shapes(op: str, expected: Shapes) -> None:
    """Raises a KernelError that names the first tensor of another shape than expected."""
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise KernelError(f"{op}: {name} is {tuple(value.shape)}, expected {shape}")


def _obstacle(device: torch.device) -> str | None:
    if not TRITON_INSTALLED:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"its tensors are on {device.type}, and Triton runs on cuda only"
    if torch.version.hip is not None and not interpreted:
        return "torch is built for ROCm, where these kernels are not known to be right"
    return None


def _log(op: str, choice: str) -> None:
    if not torch.compiler.is_compiling():  # a traced program logs nothing
        _log_once(op, choice)


@functools.cache
def _log_once(op: str, choice: str) -> None:
    logger.info("%s runs as %s", op, choice)
