"""The forms that a head can run in, one row each: what prevents a form, and how it is made."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.head import DepthHead

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead


@dataclass(frozen=True, slots=True)
class Form:
    """One row of the table: why a device can't run it, and how it is made.

    ``costly``: takes minutes to prepare on a CPU, and is measured there only on request.
    """

    obstacle: Callable[[torch.device], str | None]
    make: Callable[[DepthHead], DepthHead | FusedHead]
    costly: bool = False


def _no_obstacle(_device: torch.device) -> None:
    return None


def _no_compiler(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "torch.compile needs a C++ compiler on the CPU"
    return None


def _no_graph(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"CUDA graphs need CUDA, not {device.type}"


def _compiled(head: DepthHead) -> DepthHead:
    compiled = copy.deepcopy(head)
    compiled.compile(dynamic=False)
    return compiled


FORMS: dict[str, Form] = {
    "eager": Form(_no_obstacle, copy.deepcopy),
    "fused": Form(_no_obstacle, lambda head: head.fused(graphs=0)),
    "compiled": Form(_no_compiler, _compiled, costly=True),
    "graph": Form(_no_graph, lambda head: head.fused()),
    "plain-graph": Form(_no_graph, lambda head: head.fused(triton=False)),
}
"""``graph`` is the fused head in CUDA graphs; ``plain-graph`` is that without our kernels."""


def choose_forms(asked: tuple[str, ...], device: torch.device) -> tuple[str, ...]:
    """The forms to measure, in the table's order.

    None asked: all that the device can run, on a CPU without the costly ones.
    """
    for name in asked:
        if name not in FORMS:
            raise BenchError(f"form {name!r}: there are {', '.join(FORMS)}")
        obstacle = FORMS[name].obstacle(device)
        if obstacle is not None:
            raise BenchError(f"form {name!r} was requested, but {obstacle}")
    if asked:
        return tuple(name for name in FORMS if name in asked)
    return tuple(
        name
        for name, form in FORMS.items()
        if form.obstacle(device) is None and not (form.costly and device.type == "cpu")
    )
