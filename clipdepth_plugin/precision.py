"""The dtype that a part of a pass computes in, and which of them a device computes fast in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

_NOTHING = nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Computes in the dtypes of the weights, also where the caller is under an autocast."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def outside_inference() -> AbstractContextManager[Any]:
    """What is made inside is the user's: autograd may save it, inference mode or not."""
    inside = torch.compiler.is_dynamo_compiling() or torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside else _NOTHING


def imitates(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU has no instructions for a 16-bit dtype, so that float32 is far faster.

    False for other devices and dtypes, and for torch releases that do not report a CPU's features.
    """
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None or name is None:
        return False
    of_dtype = [has for feature, has in capabilities().items() if name in feature]
    return bool(of_dtype) and not any(of_dtype)


def fastest_precision(device: torch.device) -> Literal["no", "bf16"]:
    """The mixed precision to train in: bfloat16 where the device computes in it, else none.

    Of CPUs those with AMX or AVX512-BF16: with the latter alone (AMD Zen 4) a training step of a
    head takes 0.5 (``spaceclip``) to 0.87 (a linear probe) of float32's time.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return "no"
    has = capabilities()
    return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else "no"


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Takes float32 below 1.2e-38 as zero on the CPU, in this thread and in those begun by it.

    A head's gradients become so small after some hundred steps, and processors compute with such
    numbers many times slower. The thread's own setting is restored.
    """
    before = (torch.tensor(1e-40) * 1).item() == 0
    torch.set_flush_denormal(True)  # does nothing where a processor can't
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
