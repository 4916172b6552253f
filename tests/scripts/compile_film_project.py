"""Compiles the film_project kernel for real GPUs without one; prints shared memory and spills.

Run by tests/test_kernels.py in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clipdepth_plugin.kernels.film_project import (
    dot_dtype,
    film_project_fwd_kernel,
    tile_sizes,
)

INTEGERS = ("tokens", "patches", "width", "channels", "prefix")
POINTERS = ("x_ptr", "gamma_ptr", "weight_ptr", "out_ptr")


def spills(ptx: str) -> int:
    """Bytes spilled, as ptxas reports them."""
    folder = Path(triton.backends.nvidia.__file__).parent / "bin"
    newest = folder / "ptxas-blackwell"  # Triton's PTX may be too new for the plain one
    ptxas = newest if newest.exists() else folder / "ptxas"
    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        report = subprocess.run(
            [ptxas, "-v", f"--gpu-name={arch[1]}", file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))


def main() -> None:
    kernel = film_project_fwd_kernel()
    report = {}
    for capability in map(int, sys.argv[1:]):
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            constants = {**tile_sizes(256, dtype), "DOT_DTYPE": dot_dtype(dtype)}
            types = {
                **dict.fromkeys(POINTERS, f"*{name}"),
                "shift_ptr": "*fp32",
                **dict.fromkeys(INTEGERS, "i32"),
                **dict.fromkeys(constants, "constexpr"),
            }
            names = kernel.arg_names
            source = ASTSource(
                kernel,
                {key: types[key] for key in names},
                constexprs={(names.index(key),): value for key, value in constants.items()},
            )
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            report[f"sm_{capability} {name}"] = {
                "shared": built.metadata.shared,
                "cubin": len(built.asm["cubin"]),
                "spills": spills(built.asm["ptx"]),
            }
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
