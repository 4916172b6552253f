"""Compiles every kernel for real GPUs without one; prints shared memory and stack as JSON.

Fused heads of the presets run with what launches a kernel replaced by something that notes the
launch, so that what is compiled is what a GPU would be given: the same constants, dtypes and
alignments. Run by tests/test_kernels.py in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import triton
import triton.backends.nvidia
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.kernels import dispatch, launch

HEADS: tuple[dict[str, Any], ...] = (
    {"preset": "spaceclip"},
    {"preset": "spaceclip", "confidence": True},
    {"preset": "guided"},
    {"preset": "guided", "confidence": True},
)
"""``guided`` has all that ``fast`` has."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MODES = ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True))
"""A dtype, and whether float32 is multiplied in TF32."""
LAUNCH_OPTIONS = ("num_warps", "num_stages")
Launch = tuple[Callable[..., Any], dict[str, str], dict[str, Any]]
"""A kernel, its arguments' types by name, and its constants."""


def describe(value: Any) -> str:
    """Type and alignment of an argument, as Triton specialises kernels by them."""
    if isinstance(value, Tensor):
        return f"*{NAMES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32:16" if value % 16 == 0 else "i32"


class Noted:
    """Stands in for a kernel; ``launches`` holds the first launch with the same constants."""

    launches: ClassVar[dict[tuple[Any, ...], Launch]] = {}

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(*args: Any, **constants: Any) -> None:
            names = self.kernel.__code__.co_varnames
            described = {name: describe(x) for name, x in zip(names, args, strict=False)}
            key = (self.kernel, *constants.items())
            self.launches.setdefault(key, (self.kernel, described, constants))

        return note


def note_launches() -> list[Launch]:
    """Of all presets at their published sizes, in all modes."""
    real_jit, real_wrap, real_obstacle = launch.jit, torch.library.wrap_triton, dispatch._obstacle
    launch.jit, torch.library.wrap_triton = Noted, lambda kernel: kernel  # type: ignore[assignment]
    dispatch._obstacle = lambda device: None
    for options in HEADS:
        config = HeadConfig(width=768, **options)
        head = DepthHead(config).eval()
        for dtype, tf32 in MODES:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            levels = {k: torch.zeros(1, 196, 768) for k in config.levels}
            pixels = torch.zeros(1, 3, 224, 224) if head.reads_pixels else None
            features = TowerFeatures(levels, torch.zeros(1, 768), (14, 14), pixels)
            head.fused(dtype, triton=True)(features, (240, 320))
    launch.jit, torch.library.wrap_triton, dispatch._obstacle = real_jit, real_wrap, real_obstacle
    return list(Noted.launches.values())


def build(noted: Launch, capability: int) -> dict[str, int]:
    """Compiles one launch for one target."""
    function, types, given = noted
    kernel = launch.jit(function)
    options = {name: given[name] for name in LAUNCH_OPTIONS if name in given}
    signature, constants, aligned = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in given:
            signature[name] = "constexpr"
            constants[index,] = given[name]
            continue
        signature[name] = types[name].removesuffix(":16")
        if types[name].startswith("*") or types[name].endswith(":16"):
            aligned[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "shared": built.metadata.shared,
        "cubin": len(built.asm["cubin"]),
        "stack": stack_of(built.asm["cubin"]),
    }


def stack_of(cubin: bytes) -> int:
    """Bytes of stack that a thread takes: spilled registers lie there."""
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = [str(tool), "-res-usage", file.name]
        report = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", report)
    return int(stack)


def main() -> None:
    report = []
    for noted in note_launches():
        for capability in map(int, sys.argv[1:]):
            built = build(noted, capability)
            told = {name: str(value) for name, value in {**noted[1], **noted[2]}.items()}
            line = {"kernel": noted[0].__name__, "sm": capability, "launch": told, **built}
            report.append(line)
            print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
