"""A copy of a module that shares its weights: hooks, modes and casts of one leave the other be."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from clipdepth_plugin.adapters.forwards import leave_plain
from clipdepth_plugin.adapters.hooks import Hook

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class SharedCopy:
    """Copies modules one by one; what they share, and what refers to another, stays so.

    Parameters of the copies are new objects over the same memory, which need no gradient: a cast or
    a move of a copy leaves the original as it is. Hooks of plug-ins stay behind.
    """

    def __init__(self, around: nn.Module) -> None:
        """``around`` holds all weights that are to be shared."""
        self._memo: dict[int, Any] = {id(x): x for x in around.buffers()}
        for x in around.parameters():
            plain = type(x) is nn.Parameter
            self._memo[id(x)] = nn.Parameter(x.detach(), requires_grad=False) if plain else x

    def of(self, module: M) -> M:
        """The copy of a module, in evaluation mode."""
        twin = copy.deepcopy(module, self._memo).eval()
        for original in module.modules():
            own = self[original]
            for name in _HOOKS:
                hooks = getattr(original, name)
                for number in [key for key, hook in hooks.items() if isinstance(hook, Hook)]:
                    getattr(own, name).pop(number, None)
            leave_plain(own)
        return twin

    def __getitem__(self, original: T) -> T:
        """The copy of a module that is inside one copied before."""
        twin: T = self._memo[id(original)]
        return twin
