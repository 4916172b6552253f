"""Runs every kernel in Triton's interpreter; prints relative errors, against float64, as JSON.

Run by tests/test_kernels.py with TRITON_INTERPRET=1 (Triton decides at import), or with
``--device cuda`` on a GPU. What is allocated is filled with NaN, so that what a kernel leaves out
is seen. ``--tf32`` runs float32 alone: bfloat16 is multiplied the same either way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin import ops
from clipdepth_plugin.config import Activation
from clipdepth_plugin.decoders.readout import DepthActivation
from tests.scripts.interpreter import skip_overflow_checks

Case = tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=GENERATOR) * scale


def a_map(*shape: int) -> Tensor:
    return random(*shape).to(memory_format=torch.channels_last)


def kernel_of(out: int, *rest: int) -> Tensor:
    fan_in = torch.Size(rest).numel()
    weight = random(out, *rest, scale=fan_in**-0.5)
    return weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight


def tokens(views: int, count: int, width: int, prefix: int) -> Tensor:
    """Patch tokens as a slice behind prefix tokens that must not be read."""
    x = random(views, prefix + count, width)
    x[:, :prefix] = torch.nan
    return x[:, prefix:]


def film_project() -> Iterator[Case]:
    # views, grid, width, prefix, channels of the levels, modulated ones
    for views, (h, w), width, prefix, channels, modulated in (
        (0, (3, 3), 64, 1, (32, 16), 1),
        (1, (13, 17), 768, 1, (64, 32), 1),
        (3, (5, 7), 384, 5, (40, 8, 33), 2),
        (1, (4, 4), 1024, 0, (256,), 0),
        (1, (2, 3), 1152, 0, (17, 5, 16, 8, 9, 33, 2), 4),
        (1, (37, 37), 48, 1, (16, 9), 1),
    ):
        levels = [tokens(views, h * w, width, prefix) for _ in channels]
        film = random(modulated, views, 2 * width) if modulated else None
        weight = kernel_of(sum(channels), width)
        yield f"{views}x{h}x{w}x{width}+{prefix}", ops.film_project, (
            levels, film, weight, random(sum(channels)), channels
        ), {}  # fmt: skip


def film_mlp() -> Iterator[Case]:
    for views, width, hidden, levels, out, activation, normed in (
        (1, 768, 40, 2, 96, "relu", False),
        (3, 384, 24, 2, 40, "gelu", True),
        (1, 1024, 16, 3, 20, "relu", False),
        (3, 1152, 16, 1, 24, "gelu", True),
        (17, 100, 16, 1, 33, "gelu", True),
        (0, 64, 16, 1, 16, "relu", False),
    ):
        args = (random(views, width) + 3, kernel_of(levels, hidden, width), random(levels, hidden))
        last = (kernel_of(levels, out, hidden), random(levels, out))
        yield (
            f"{views}x{width}+",
            ops.film_mlp,
            (*args, *last),
            {"activation": activation, "normed": normed},
        )


def normed_project() -> Iterator[Case]:
    for views, (h, w), width, prefix, levels, channels, modulated in (
        (1, (13, 17), 384, 1, 2, 24, True),
        (3, (3, 5), 768, 5, 3, 40, False),
        (2, (2, 2), 1152, 0, 1, 8, True),
        (1, (37, 37), 48, 1, 1, 16, True),
        (1, (3, 4), 1024, 1, 2, 16, False),
        (0, (3, 3), 64, 1, 1, 16, False),
    ):
        x = [tokens(views, h * w, width, prefix) * 3 + 1 for _ in range(levels)]
        film = random(levels, views, 2 * channels) if modulated else None
        weights = (kernel_of(levels, channels, width), random(levels, channels))
        yield f"{views}x{h}x{w}x{width}+{prefix}", ops.normed_project, (x, film, *weights), {}
    # One channel a thousand times as large as the others, as towers have them, and not used.
    outlier, weight = tokens(1, 16, 768, 0), kernel_of(1, 16, 768)
    outlier[..., 5], weight[..., 5] = 1000, 0
    yield "1x4x4x768+0", ops.normed_project, ([outlier], None, weight, random(1, 16)), {}


def up_conv() -> Iterator[Case]:
    for batch, channels, (h, w), out in (
        (1, 48, (13, 17), 16),
        (3, 20, (5, 3), 40),
        (2, 8, (1, 1), 5),
        (1, 4, (37, 37), 3),
        (0, 8, (3, 3), 8),
    ):
        yield f"{batch}x{channels}x{h}x{w}x{out}", ops.up_conv, (
            a_map(batch, channels, h, w), kernel_of(4 * out, channels, 2, 2), random(4, 4, out)
        ), {"relu": batch != 3}  # fmt: skip


def join_conv() -> Iterator[Case]:
    for batch, channels, (h, w), skip, out, residual in (
        (1, 16, (13, 17), (2, 5, 4), 16, True),
        (3, 20, (6, 10), (12, 6, 10), 40, False),
        (1, 8, (14, 10), (24, 7, 5), 5, False),
        (2, 4, (12, 20), (4, 3, 5), 3, True),
        (1, 3, (37, 37), None, 2, False),
        (0, 8, (3, 3), None, 8, False),
    ):
        wide = channels + (skip[0] if skip else 0)
        yield f"{batch}x{channels}x{h}x{w} {skip}", ops.join_conv, (
            a_map(batch, channels, h, w),
            a_map(batch, *skip) if skip else None,
            kernel_of(out, wide, 3, 3),
            random(out),
        ), {
            "residual_BOHW": a_map(batch, out, h, w) if residual else None,
            "relu": not residual,
        }  # fmt: skip


def gated_skips() -> Iterator[Case]:
    for batch, channels, (h, w), low, structural in (
        (1, 16, (13, 17), (13, 17), False),
        (3, 40, (6, 10), (3, 5), True),
        (1, 5, (37, 37), (9, 4), True),
        (0, 8, (4, 4), (2, 2), True),
    ):
        gates = channels * (2 if structural else 1)
        yield f"{batch}x{channels}x{h}x{w}", ops.gated_skips, (
            a_map(batch, channels, h, w),
            a_map(batch, channels, *low),
            a_map(batch, channels, h, w) if structural else None,
            kernel_of(gates, channels),
            random(gates),
        ), {}  # fmt: skip


def depth_readout() -> Iterator[Case]:
    activation: Activation
    for batch, channels, (h, w), hidden, activation, size in (
        (1, 16, (13, 17), 8, "relu", None),
        (2, 32, (16, 14), 16, "log", (31, 45)),
        (1, 5, (37, 37), 3, "softplus", (20, 11)),
        (3, 4, (1, 2), 1, "log", (5, 3)),
        (1, 4, (27, 3), 2, "log", (600, 7)),
        (0, 8, (3, 3), 4, "log", None),
    ):
        yield f"{batch}x{channels}x{h}x{w} {size}", ops.depth_readout, (
            a_map(batch, channels, h, w),
            kernel_of(hidden, channels, 3, 3),
            random(hidden),
            kernel_of(1, hidden, 3, 3),
            random(1),
        ), {"activation": DepthActivation(activation, (0.05, 20.0)), "size": size}  # fmt: skip


def convex_depth() -> Iterator[Case]:
    activation: Activation
    for batch, channels, (h, w), activation, maps, embedding in (
        (1, 64, (13, 17), "log", 2, 3),
        (3, 20, (5, 3), "relu", 2, 0),
        (2, 70, (1, 1), "softplus", 1, 8),
        (1, 16, (37, 37), "log", 1, 0),
        (0, 8, (3, 3), "log", 2, 8),
    ):
        yield f"{batch}x{channels}x{h}x{w} {maps} {embedding}", ops.convex_depth, (
            a_map(batch, channels, h, w),
            random(batch, maps, h, w),
            kernel_of(144, channels) * 3,
            random(144),
            a_map(batch, embedding, 4 * h, 4 * w) if embedding else None,
        ), {"activation": DepthActivation(activation, (0.05, 20.0))}  # fmt: skip


OPS = (
    film_project, film_mlp, normed_project, up_conv, join_conv, gated_skips, depth_readout,
    convex_depth,
)  # fmt: skip


def cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    """Tensors of any nesting in another dtype, their strides kept."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    if isinstance(value, list):
        return [cast(x, dtype, device) for x in value]
    return value


def flat(out: Tensor | list[Tensor]) -> Tensor:
    parts = [out] if isinstance(out, Tensor) else out
    return torch.cat([x.double().flatten() for x in parts])


def error_of(case: Case, dtype: torch.dtype, device: str) -> float:
    """Norm of the difference over that of the float64 reference."""
    _, op, args, options = case
    arguments = [cast(x, dtype, device) for x in args]
    options = {name: cast(x, dtype, device) for name, x in options.items()}
    exact_options = {name: cast(x, torch.float64, "cpu") for name, x in options.items()}
    exact_arguments = [cast(x, torch.float64, "cpu") for x in arguments]
    exact = flat(op(*exact_arguments, triton=False, **exact_options))
    difference = flat(op(*arguments, triton=True, **options)).cpu() - exact
    return float(difference.norm() / exact.norm().clamp_min(1e-9))


def poison() -> None:
    """Fills what is allocated with NaN."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **options: Any) -> Tensor:
            x = make(*args, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return filled

    torch.empty, Tensor.new_empty = poisoned(empty), poisoned(new_empty)  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ops", nargs="*", help="only these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="as torch multiplies by default")
    asked = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = asked.tf32
    dtypes = (torch.float32,) if asked.tf32 else (torch.float32, torch.bfloat16)
    if asked.device == "cpu":
        skip_overflow_checks()
    poison()
    errors = {}
    for make_cases in OPS:
        name = make_cases.__name__
        if asked.ops and name not in asked.ops:
            continue
        for case in make_cases():
            for dtype in dtypes:
                errors[f"{name} {case[0]} {dtype}"] = error_of(case, dtype, asked.device)
    print(json.dumps(errors))  # noqa: T201


if __name__ == "__main__":
    main()
