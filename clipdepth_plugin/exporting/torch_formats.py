"""``.pt2``: a program of torch.export, or with ``aoti`` what AOTInductor compiled of it."""

from __future__ import annotations

from pathlib import Path

import torch

from clipdepth_plugin.errors import ExportError, shortened
from clipdepth_plugin.exporting.format import Written, register_format
from clipdepth_plugin.exporting.graphs import Exported, Inputs, Run


@register_format("pt2")
class Pt2:
    """``torch.export.save``."""

    def check(self) -> None:
        """See ``Format.check``."""

    def write(self, exported: Exported, folder: Path, opset: int) -> Written:  # noqa: ARG002
        """See ``Format.write``."""
        path = folder / f"{exported.graph.stem}.pt2"
        torch.export.save(exported.program, path)
        return Written(path, _run_of(torch.export.load(path).module()))


@register_format("aoti")
class Aoti:
    """``torch._inductor.aoti_compile_and_package``."""

    def check(self) -> None:
        """See ``Format.check``."""
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:  # its own InvalidCxxCompiler, and what a search raises
            raise ExportError(
                "--format aoti: AOTInductor needs a C++ compiler, and this machine has none (g++, "
                "clang++, or the one that the environment variable CXX names)"
            ) from error

    def write(self, exported: Exported, folder: Path, opset: int) -> Written:  # noqa: ARG002
        """See ``Format.write``."""
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        path = folder / f"{exported.graph.stem}.aoti.pt2"
        try:
            aoti_compile_and_package(exported.program, package_path=str(path))
            loaded = aoti_load_package(str(path))
        except Exception as error:  # of the compiler that it calls: almost anything
            first = next(iter(str(error).strip().splitlines()), "no message")
            raise ExportError(
                f"{path.name}: AOTInductor can't compile it here "
                f"({type(error).__name__}: {shortened(first, 300)})"
            ) from error
        return Written(path, _run_of(loaded))


def _run_of(loaded: object) -> Run:
    assert callable(loaded)

    def run(inputs: Inputs) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(loaded(*inputs))

    return run
