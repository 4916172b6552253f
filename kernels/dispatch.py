"""Decides whether an op runs as its Triton kernel or as its PyTorch reference.

None chooses, False is the reference, True must work or fail with the reason. A choice is logged
once for each op; there is no silent fallback.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from clipdepth_plugin.errors import KernelError

logger = logging.getLogger(__name__)


def use_triton(
    op: str, device: torch.device, asked: bool | None, *, obstacle: str | None = None
) -> bool:
    """Whether ``op`` runs as a Triton kernel on ``device``.

    Args:
        op: Name, for the log and the error.
        device: Where its tensors are.
        asked: What the caller said.
        obstacle: Why the kernel cannot take these inputs, whatever the machine; None: it can.

    Raises:
        KernelError: Triton was asked for and cannot run; says why.
    """
    if asked is False:
        _log_once(op, "the PyTorch reference, as asked")
        return False
    obstacle = _obstacle(device) or obstacle
    if asked and obstacle is not None:
        raise KernelError(f"{op}: the Triton kernel was asked for, but {obstacle}")
    _log_once(op, "its Triton kernel" if obstacle is None else f"the reference: {obstacle}")
    return obstacle is None


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"its tensors are on {device.type}, and Triton runs on cuda only"
    return None


@functools.cache
def _log_once(op: str, choice: str) -> None:
    logger.info("%s runs as %s", op, choice)
