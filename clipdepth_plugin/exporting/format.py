"""What a format of exported files is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from clipdepth_plugin.exporting.graphs import Exported, Run


@dataclass(frozen=True)
class Written:
    """What a format wrote.

    Attributes:
        path: The file.
        run: The file, read again, as a function.
        opset: Of ONNX.
        beside: Further files that it needs.
        doubts: What TensorRT may not take, a sentence each.
    """

    path: Path
    run: Run
    opset: int | None = None
    beside: tuple[Path, ...] = ()
    doubts: tuple[str, ...] = ()


class Format(Protocol):
    """Writes a graph in one format and reads it again."""

    def check(self) -> None:
        """Raises an ExportError where this machine lacks what it needs; before any work."""
        ...

    def write(self, exported: Exported, folder: Path, opset: int) -> Written:
        """Writes STEM.SUFFIX into a folder.

        Raises:
            ExportError: It can't be written, checked, or read again.
        """
        ...


F = TypeVar("F", bound=type)

FORMATS: dict[str, Callable[[], Format]] = {}


def register_format(name: str) -> Callable[[F], F]:
    """Registers a format by the name that ``--format`` takes."""

    def register(form: F) -> F:
        FORMATS[name] = form
        return form

    return register
