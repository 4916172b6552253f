"""What the Triton kernels share: how they are made, their tiles, and bits of device code.

Triton is imported where a kernel is made, never with this file. A kernel is a plain function until
then; what it calls is marked as a ``device_function``.

Axes: M N output positions and channels of a tile, K what is summed over.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, Protocol, cast

import torch
from torch import Tensor

from clipdepth_plugin.kernels.dispatch import TRITON_INSTALLED

if TYPE_CHECKING:
    import triton.language as tl

P = ParamSpec("P")

METRES = {"relu": 0, "softplus": 1, "log": 2, "bins": 3}
"""Output activations by the number that ``to_metres`` knows them by."""


Product = Literal["convolution", "matmul"]

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}
"""Activations between layers by the number that kernels know them by."""


def device_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that kernels call."""
    function.__device_function__ = True  # type: ignore[attr-defined]
    return function


@functools.cache
def jit(kernel: Callable[..., Any]) -> Any:
    """The Triton kernel of a function, made on first use.

    Triton reads a kernel's globals: its language, and the device functions that it calls.
    """
    import triton
    import triton.language

    names = kernel.__globals__
    names["tl"] = triton.language
    for name in kernel.__code__.co_names:
        called = names.get(name)
        if getattr(called, "__device_function__", False):
            names[name] = jit(called)
    return triton.jit(kernel)


def launchable(kernel: Callable[..., Any]) -> Any:
    """The kernel, to be launched as ``launchable(kernel)[grid](...)``: traceable by torch."""
    made = jit(kernel)
    return made if interpreted() else torch.library.wrap_triton(made)


def kernel_op(name: str) -> Callable[[Callable[P, Tensor]], Op[P]]:
    """Registers a launcher as ``clipdepth::name`` (``torch.library.triton_op``), with its types.

    Where triton is not installed it is never called, and a plain op keeps torch from warning.
    """
    make = torch.library.triton_op if TRITON_INSTALLED else torch.library.custom_op

    def register(launcher: Callable[P, Tensor]) -> Op[P]:
        return cast("Op[P]", make(f"clipdepth::{name}", mutates_args=())(launcher))

    return register


class Op(Protocol[P]):
    """What is used of a ``torch.library`` op."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Launches."""
        ...

    def register_fake(self, fake: Callable[..., Tensor]) -> object:
        """Says what comes out, without launching."""
        ...

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """Gives it a gradient."""
        ...


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def products(x: Tensor, like: Product) -> dict[str, Any]:
    """What contractions multiply in, as a kernel's launch takes it.

    float32 is multiplied as torch multiplies it: in TF32 where its settings allow that (by default
    for convolutions, not for matrix products), else exactly, without tensor cores. The
    interpreter's bfloat16 products are wrong: float32 there.

    Args:
        x: An input: its dtype and device.
        like: Which of torch's products the kernel stands in for.
    """
    import triton.language

    if interpreted() or x.dtype == torch.float32:
        number = triton.language.float32
    else:
        number = triton.language.bfloat16 if x.dtype == torch.bfloat16 else triton.language.float16
    return {"DOT_DTYPE": number, "PRECISION": "tf32" if in_tf32(x, like) else "ieee"}


def in_tf32(x: Tensor, product: Product) -> bool:
    """Whether a product with ``x`` is TF32's. GPUs before Ampere have none: torch is exact there.

    A tensor on a CPU is the interpreter's, which stands in for a newer GPU.
    """
    if x.dtype != torch.float32 or not tf32_allowed(product):
        return False
    return x.device.type != "cuda" or torch.cuda.get_device_capability(x.device) >= (8, 0)


def tf32_allowed(product: Product) -> bool:
    """Whether torch's settings let it multiply float32 in TF32."""
    backends: Any = torch.backends
    convolutions = product == "convolution"
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and newer, where the older names may raise
        settings = backends.cudnn.conv if convolutions else backends.cuda.matmul
        return bool(settings.fp32_precision == "tf32")
    return bool((backends.cudnn if convolutions else backends.cuda.matmul).allow_tf32)


class Tiles(NamedTuple):
    """Tile sizes and how a launch is laid out.

    Attributes:
        m: Positions.
        n: Output channels.
        k: Summed over in one step.
        warps: Of a program.
        stages: Of the software pipeline.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def arguments(self) -> dict[str, int]:
        """As a kernel's launch takes them."""
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


ENOUGH_PROGRAMS = 132
"""Of an H100's multiprocessors, each should have one."""


def choose_tiles(positions: int, channels: int, x: Tensor, copies: int = 1) -> Tiles:
    """A rule, not a search: the first call is as fast as the next.

    The largest tiles that still give every multiprocessor work. Exact float32 has no tensor cores:
    larger tiles would spill registers. The published head's 28 x 28 maps make 104 programs of the
    smallest; splitting their sums would take a second launch, or atomics, which add in an order
    that changes from run to run.
    """
    if x.dtype == torch.float32 and not in_tf32(x, "convolution"):
        return Tiles(32, 16 if channels <= 16 else 32, 32, warps=4, stages=2)
    k, warps, highest = 64, 4, 128
    if x.dtype == torch.float32:  # rounding to TF32 takes registers; none are to be spilled
        k, warps, highest = 32, 8, 64
    n = next(n for n in (16, 32, 64) if channels <= n or n == 64)
    for m in (highest, 64):
        if cdiv(positions, m) * cdiv(channels, n) * copies >= 2 * ENOUGH_PROGRAMS:
            return Tiles(m, n, k, warps, stages=3)
    few = cdiv(positions, 64) * cdiv(channels, n) * copies < ENOUGH_PROGRAMS
    return Tiles(64, min(n, 32) if few else n, k, warps, stages=4)


def empty_map(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An output, channels last, of ``like``'s dtype and device."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def channels_last(x_BCHW: Tensor) -> Tensor:
    """A map with the strides that the kernels count on; itself, where it has them."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def cdiv(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``n`` and ``least``."""
    return max(1 << (n - 1).bit_length(), least)


@device_function
def dot_add(x, weight, total, DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total`` + x @ weight, multiplied as ``products`` says."""
    x, weight = x.to(DOT_DTYPE), weight.to(DOT_DTYPE)
    if PRECISION == "tf32":
        x, weight = rounded_to_tf32(x), rounded_to_tf32(weight)
    return tl.dot(x, weight, total, input_precision=PRECISION)


@device_function
def rounded_to_tf32(x):  # type: ignore[no-untyped-def]
    """The nearest float32 with ten bits of mantissa: the tensor cores cut the others off."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # noqa: PLR0124 (NaN stays)


@device_function
def sample_axis(at, scale, low):  # type: ignore[no-untyped-def]
    """Where bilinear resize (``align_corners=False``) reads along an axis: two places, a share."""
    source = tl.maximum((at.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), low - 1)
    return first, tl.minimum(first + 1, low - 1), source - first.to(tl.float32)


@device_function
def sample(map_ptr, rows, columns, channel, mask, row_scale, column_scale, height, width, channels):  # type: ignore[no-untyped-def]
    """(M, N) of one (height, width, channels) map for each row, sampled bilinearly in float32.

    ``map_ptr`` (M, 1) points at each position's map, ``channel`` is (1, N).
    """
    top, bottom, down = sample_axis(rows, row_scale, height)
    left, right, across = sample_axis(columns, column_scale, width)
    at = map_ptr + channel
    top_left = tl.load(at + (top * width + left)[:, None] * channels, mask=mask, other=0)
    top_right = tl.load(at + (top * width + right)[:, None] * channels, mask=mask, other=0)
    low_left = tl.load(at + (bottom * width + left)[:, None] * channels, mask=mask, other=0)
    low_right = tl.load(at + (bottom * width + right)[:, None] * channels, mask=mask, other=0)
    across, down = across[:, None], down[:, None]
    upper = top_left.to(tl.float32) * (1 - across) + top_right.to(tl.float32) * across
    lower = low_left.to(tl.float32) * (1 - across) + low_right.to(tl.float32) * across
    return upper * (1 - down) + lower * down


@device_function
def to_metres(level, low, high, METRES: tl.constexpr):  # type: ignore[no-untyped-def]
    """``readout.Metres``: ``low`` and ``high`` are logarithms of the range's ends."""
    if METRES == 0:
        return tl.maximum(level, 0.0)
    elif METRES == 1:
        return tl.maximum(level, 0.0) + tl.log(1 + tl.exp(-tl.abs(level)))
    else:
        share = level
        if METRES == 2:
            share = tl.sigmoid(level)
        return tl.exp(low + (high - low) * share)


@device_function
def activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of ``ACTIVATIONS``."""
    if ACTIVATION == 1:
        x = tl.maximum(x, 0.0)
    if ACTIVATION == 2:
        x = gelu(x)
    return x


@device_function
def gelu(x):  # type: ignore[no-untyped-def]
    """The exact one, by the error function."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@device_function
def pick_pointer(level, x0, x1, x2, x3, x4, x5, x6, x7):  # type: ignore[no-untyped-def]
    """The ``level``-th of eight."""
    x = x0
    x = tl.where(level == 1, x1, x)
    x = tl.where(level == 2, x2, x)
    x = tl.where(level == 3, x3, x)
    x = tl.where(level == 4, x4, x)
    x = tl.where(level == 5, x5, x)
    x = tl.where(level == 6, x6, x)
    return tl.where(level == 7, x7, x)


@device_function
def row_moments(rows_ptr, mask, width, inverse_width, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean and reciprocal deviation of rows, as ``nn.LayerNorm`` takes them; in two passes."""
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = mask[:, None] & (k < width)[None, :]
        total += tl.sum(tl.load(rows_ptr + k[None, :], mask=inside, other=0).to(tl.float32), 1)
    mean = total * inverse_width
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = mask[:, None] & (k < width)[None, :]
        x = tl.load(rows_ptr + k[None, :], mask=inside, other=0).to(tl.float32)
        centred = tl.where(inside, x - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(squares * inverse_width + 1e-5)
