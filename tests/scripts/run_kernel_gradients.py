"""Gradients, whole heads and export through the kernels, in Triton's interpreter.

Prints relative errors, against PyTorch's own gradients and the plain heads, as JSON. Run by
tests/test_kernels.py with TRITON_INTERPRET=1: Triton decides at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures, ops
from tests.scripts.interpreter import skip_overflow_checks

SMALL: dict[str, dict[str, Any]] = {
    "spaceclip": {"channels": (16, 8), "semantic_levels": (4, 2), "structural_levels": (1,)},
    "fast": {"preset": "fast", "channels": (16, 8, 8)},
    "guided": {"preset": "guided", "channels": (16, 8, 8), "stem_channels": 4},
    "sure": {"preset": "fast", "channels": (16, 8, 8), "confidence": True},
    "sure spaceclip": {
        "channels": (16, 8),
        "semantic_levels": (4, 2),
        "structural_levels": (1,),
        "confidence": True,
    },
}


def relative(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm().clamp_min(1e-9))


def gradients(call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    out = torch.cat([x.flatten() for x in call()])
    weights = torch.arange(out.numel()).sin()
    return list(torch.autograd.grad((out * weights).sum(), inputs))


def film_project_errors() -> dict[str, float]:
    x = [torch.randn(2, 7, 24)[:, 1:].requires_grad_() for _ in range(3)]
    film, weight, bias = torch.randn(2, 2, 48), torch.randn(21, 24), torch.randn(21)
    inputs = [*x, *(y.requires_grad_() for y in (film, weight, bias))]
    names = ("first", "second", "unmodulated", "film", "weight", "bias")

    def call(triton: bool) -> Callable[[], list[Tensor]]:
        return lambda: ops.film_project(x, film, weight, bias, (5, 9, 7), triton=triton)

    pairs = zip(gradients(call(True), inputs), gradients(call(False), inputs), strict=True)
    return {
        f"film_project, {n}, gradient": relative(*pair)
        for n, pair in zip(names, pairs, strict=True)
    }


def gated_skips_errors() -> dict[str, float]:
    inputs = [
        torch.randn(2, 5, 6, 9),
        torch.randn(2, 5, 3, 4),
        torch.randn(2, 5, 6, 9),
        torch.randn(10, 5),
        torch.randn(10),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    names = ("u", "semantic", "structural", "weight", "bias")

    def call(triton: bool) -> Callable[[], list[Tensor]]:
        return lambda: [ops.gated_skips(*inputs, triton=triton)]

    pairs = zip(gradients(call(True), inputs), gradients(call(False), inputs), strict=True)
    return {
        f"gated_skips, {n}, gradient": relative(*pair) for n, pair in zip(names, pairs, strict=True)
    }


def head_errors(name: str) -> dict[str, float]:
    """A fused head on the kernels against the plain one: alone, in parts, in half, exported."""
    options = {"width": 24, "film_hidden": 8, "activation": "log", **SMALL[name]}
    head = DepthHead(HeadConfig(**options)).eval()
    pixels = torch.randn(1, 3, 32, 48) if head.reads_pixels else None
    levels = {k: torch.randn(1, 6, 24) for k in head.config.levels}
    features = TowerFeatures(levels, torch.randn(1, 24), (2, 3), pixels)
    fused, size = head.fused(triton=True), (20, 31)
    half = head.fused(torch.bfloat16, triton=True)
    with torch.no_grad():
        expected, alone = head.estimate(features, size), fused.estimate(features, size)
        errors = {
            f"{name}, float32": relative(alone.depth, expected.depth),
            f"{name}, bfloat16": relative(half(features, size), expected.depth),
        }
        if expected.log_scale is not None and alone.log_scale is not None:
            errors[f"{name}, scale, float32"] = relative(alone.log_scale, expected.log_scale)
            return errors
        program = torch.export.export(fused, (features, size))
        launched = {str(node.target) for node in program.graph.nodes}
        assert any(target.startswith("clipdepth.") for target in launched), launched
        exported = program.module()(features, size)
        return errors | {f"{name}, exported, float32": relative(exported, expected.depth)}


def main() -> None:
    skip_overflow_checks()
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be exact
    errors = film_project_errors() | gated_skips_errors()
    for name in SMALL:
        errors |= head_errors(name)
    print(json.dumps(errors))  # noqa: T201


if __name__ == "__main__":
    main()
