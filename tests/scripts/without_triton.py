"""What runs where triton is not installed; prints it as JSON. Run by tests/test_kernels.py."""

# ruff: noqa: E402 (triton must be gone before torch looks for it)

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

FIND = importlib.machinery.PathFinder.find_spec


def find_no_triton(name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
    """The path finder of a machine that lacks it."""
    return None if name.partition(".")[0] == "triton" else FIND(name, path, target)


importlib.machinery.PathFinder.find_spec = staticmethod(find_no_triton)  # type: ignore[method-assign, assignment]

import torch

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.config import NormKind, Preset
from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.ops import use_triton


def error_of(preset: Preset, norm: NormKind) -> float:
    """The largest difference between a fused head and the plain one, in metres."""
    torch.manual_seed(0)
    channels = (8, 8, 8, 8) if preset == "spaceclip" else (8, 8, 8)
    sizes: dict[str, Any] = {"width": 16, "channels": channels, "film_hidden": 8}
    config = HeadConfig(preset=preset, norm=norm, activation="log", **sizes)
    head = DepthHead(config).eval()
    levels = {k: torch.randn(1, 6, 16) for k in config.levels}
    features = TowerFeatures(levels, torch.randn(1, 16), (2, 3), torch.randn(1, 3, 32, 48))
    with torch.no_grad():
        return float((head.fused()(features) - head(features)).abs().max())


def refusal(device: str) -> str:
    """What ``triton=True`` is answered on a device."""
    try:
        use_triton("up_conv", torch.device(device), True)
    except KernelError as error:
        return str(error)
    return "none"


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    said = Said()
    logger = logging.getLogger("clipdepth_plugin")
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    heads: tuple[tuple[Preset, NormKind], ...] = (
        ("spaceclip", "batch"),
        ("fast", "group"),
        ("guided", "none"),
    )
    seen = {
        "errors": {preset: error_of(preset, norm) for preset, norm in heads},
        "chosen on cuda": use_triton("up_conv", torch.device("cuda"), None),
        "refusals": {device: refusal(device) for device in ("cpu", "cuda")},
        "said": said.lines,
        "imported": "triton" in sys.modules,
    }
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main()
