"""How Triton kernels are made and launched: compiling, registering, dtypes of products, tiles.

Triton is imported when a kernel is first made, never with this file. Until then a kernel is a plain
function, and what it calls is marked as a ``device_function``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol

import torch
from torch import Tensor

from clipdepth_plugin.kernels.dispatch import TRITON_INSTALLED

P = ParamSpec("P")

Product = Literal["convolution", "matmul"]


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


def kernel_op(name: str) -> Callable[[Callable[P, Tensor]], _Op[P]]:
    """Registers a launcher as ``clipdepth::name`` (``torch.library.triton_op``), with its types.

    Without triton it is never called; a plain op then keeps torch from warning.
    """
    make: Any = torch.library.triton_op if TRITON_INSTALLED else torch.library.custom_op
    register: Callable[[Callable[P, Tensor]], _Op[P]] = make(f"clipdepth::{name}", mutates_args=())
    return register


class _Op(Protocol[P]):
    """The part of a ``torch.library`` op that is used here."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...

    def register_fake(self, fake: Callable[..., Tensor]) -> object: ...

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None: ...


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def products(x: Tensor, like: Product) -> dict[str, Any]:
    """What contractions multiply in, as a kernel's launch takes it.

    float32 is multiplied as torch multiplies it: in TF32 where its settings allow that (by default
    for convolutions, not for matrix products), else exactly, without tensor cores. The
    interpreter's bfloat16 products are wrong: float32 there. ``x`` is an input; ``like`` says which
    of torch's products the kernel stands in for.
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
    """Positions, output channels and what is summed in one step; warps and pipeline stages."""

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
"""One for each of an H100's multiprocessors."""


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
