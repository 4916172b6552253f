"""The hook that all of ours are, and whether a graph is recorded, whose replays run no hook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Hook:
    """A hook that a copied or saved host carries as a no-op; ``owner`` tells two plug-ins apart.

    Torch notes that a hook takes keywords after it has the hook, and forgets it before a forward of
    another thread may have called it: a call without them is none of a pass that is recorded.
    """

    def __init__(
        self, owner: object, call: Callable[..., None], *, with_kwargs: bool = False
    ) -> None:
        self.owner = owner
        self._call = call
        self._with_kwargs = with_kwargs

    def __call__(self, *args: Any) -> None:
        """What torch calls: looks, returns nothing, so nothing is replaced."""
        if not self._with_kwargs or args[2:]:
            self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any arguments and returns None, in any Python, without our package.
        return getattr, (contextlib.nullcontext(), "__exit__")


class Handle(Protocol):
    """What registering a hook returns."""

    def remove(self) -> None:
        """Takes the hook off."""


Registration = tuple[Callable[..., Handle], Hook, dict[str, Any]]
"""A module's method that registers a hook, the hook, and the method's options."""


def in_cuda_graph(x: Tensor | None = None) -> bool:
    """Whether the current stream is being captured; False where CUDA was never used.

    False in compiled code, too, whose graphs are the compiler's own affair. ``x``: a tensor of what
    runs, if at hand.
    """
    if torch.compiler.is_compiling():
        return False
    on_gpu = torch.cuda.is_initialized() if x is None else x.is_cuda
    return on_gpu and torch.cuda.is_current_stream_capturing()


def in_graph() -> bool:
    """Whether what runs now is compiled, exported or recorded: it may not depend on data."""
    return torch.compiler.is_compiling() or in_cuda_graph()
