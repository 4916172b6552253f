"""The forms a head can run in: one row each. A form says why it can't be had, or makes itself."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.head import DepthHead


@dataclass(frozen=True, slots=True)
class Formed:
    """A head in one form, as ``attach`` takes it.

    Attributes:
        head: Shares no state with the plain one that a measurement could change.
        options: Further arguments of ``attach``.
    """

    head: DepthHead
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """One row of the table.

    Attributes:
        name: For ``--form`` and the report.
        obstacle: Why a device can't have it; None where it can.
        make: Makes it of a plain head in eval mode.
        costly: Takes minutes to prepare on a CPU: only where it is asked for.
    """

    name: str
    obstacle: Callable[[torch.device], str | None]
    make: Callable[[DepthHead], Formed]
    costly: bool = False


def _none(_device: torch.device) -> None:
    return None


def _not_fused(_device: torch.device) -> str | None:
    return None if hasattr(DepthHead, "fused") else "this version has no head.fused()"


def _fused(head: DepthHead) -> Formed:
    plain: Any = head
    return Formed(plain.fused(graphs=0), {})


def _no_compiler(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "torch.compile needs a C++ compiler on the CPU"
    return None


def _compiled(head: DepthHead) -> Formed:
    compiled = copy.deepcopy(head)
    compiled.compile(dynamic=False)
    return Formed(compiled, {})


def _no_graph(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"CUDA graphs need CUDA, not {device.type}"
    return _not_fused(device)


def _graph(head: DepthHead) -> Formed:
    plain: Any = head
    return Formed(plain.fused(), {})


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("eager", _none, lambda head: Formed(copy.deepcopy(head), {})),
        Form("fused", _not_fused, _fused),
        Form("compiled", _no_compiler, _compiled, costly=True),
        Form("graph", _no_graph, _graph),
    )
}
"""``graph``: the fused head in CUDA graphs."""


def choose_forms(
    asked: tuple[str, ...], device: torch.device
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The forms to measure, and why the others are not.

    Args:
        asked: Names; empty takes all that the device has, on a CPU without the costly ones.
        device: Where it is measured.

    Raises:
        BenchError: An unknown name, or a form that was asked for and can't be had.
    """
    unknown = [name for name in asked if name not in FORMS]
    if unknown:
        raise BenchError(f"form {unknown[0]!r}: there are {', '.join(FORMS)}")
    without: dict[str, str] = {}
    for name, form in FORMS.items():
        obstacle = form.obstacle(device)
        if asked and name in asked and obstacle is not None:
            raise BenchError(f"form {name!r} was asked for, but {obstacle}")
        if obstacle is None and asked and name not in asked:
            obstacle = "not asked for"
        if obstacle is None and not asked and form.costly and device.type == "cpu":
            obstacle = f"takes minutes to prepare on a CPU; ask with --form {name}"
        if obstacle is not None:
            without[name] = obstacle
    return tuple(name for name in FORMS if name not in without), without
