"""Computes what depends on constants alone while a graph is made, so that code may read its values.

Towers of packed patches turn ``grid_thw`` into lists of lengths and windows: in a graph of one grid
these are numbers, in torch.export tensors that nobody may look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves


class _Folding(TorchFunctionMode):
    """Runs functions outside of the tracer whose tensors, if they take any, are constants."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # A tracer's own tensors are of subclasses, and so are weights.
        if any(
            isinstance(x, Tensor | torch.SymInt) and type(x) is not Tensor
            for x in tree_leaves((args, kwargs))
        ):
            return func(*args, **kwargs)
        with _disable_current_modes():
            return func(*args, **kwargs)


def folding(constants: Iterable[Any]) -> AbstractContextManager[Any]:
    """Folds inside torch.export, where any of a module's constants is a tensor."""
    if torch.compiler.is_exporting() and any(isinstance(x, Tensor) for x in constants):
        return _Folding()
    return nullcontext()
