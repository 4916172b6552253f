"""Hooks on any module, also where its class runs ``forward`` itself, past torch's hooks.

vLLM's ``@support_torch_compile`` replaces a class's ``__call__``, compiled or not: torch's hooks on
such modules never run. There the instance's ``forward`` is wrapped, and the same hooks run around
it. Removing the last of them leaves the instance as it was.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from clipdepth_plugin.adapters.hooks import Handle, Hook


def before(module: nn.Module) -> Callable[..., Handle]:
    """What registers a hook that sees a module's arguments; options as torch's own takes."""
    return module.register_forward_pre_hook if runs_hooks(module) else partial(_put_on, module)


def after(module: nn.Module) -> Callable[..., Handle]:
    """What registers a hook that sees a module's output; options as torch's own takes."""
    if runs_hooks(module):
        return module.register_forward_hook
    return partial(_put_on, module, sees_output=True)


def output_hooks(module: nn.Module) -> list[Hook]:
    """Our hooks on a module that see its output."""
    found = list(module._forward_hooks.values())
    if isinstance(wrapped := vars(module).get("forward"), _WrappedForward):
        found += [one.hook for one in wrapped.hooks if one.sees_output]
    return [hook for hook in found if isinstance(hook, Hook)]


def runs_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs torch's hooks.

    A class that uses ``super()`` in its ``__call__`` hands on to the next one (transformers'
    layers); any other is taken to run ``forward`` itself.
    """
    for kind in type(module).__mro__:
        if kind is nn.Module:
            return True
        call = vars(kind).get("__call__")
        if call is not None and "__class__" not in getattr(_code(call), "co_freevars", ()):
            return False
    return True


def call_code(module: nn.Module) -> Any:
    """The code that runs as long as a call of a module."""
    return _code(nn.Module.__call__ if runs_hooks(module) else type(module).__call__)


def _code(call: Any) -> Any:
    return getattr(call, "__code__", None)


def leave_plain(twin: nn.Module) -> None:
    """Drops what a copy has in the place of a wrap: its class's own ``forward``, bound to it."""
    own = vars(twin).get("forward")
    if own is not None and getattr(own, "__func__", None) is type(twin).forward:
        del vars(twin)["forward"]


@dataclass(eq=False)
class _On:
    """A hook and its options, as torch names them; ``sees_output``: after ``forward``."""

    hook: Hook
    sees_output: bool
    with_kwargs: bool
    always_call: bool


class _WrappedForward:
    """In the place of an instance's ``forward``; a copied or pickled instance has its own again."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = vars(module).get("forward")
        self.plain = module.forward
        self.hooks: tuple[_On, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks = self.hooks
        due = [one for one in hooks if one.sees_output]
        output = None
        try:
            for one in hooks:
                if not one.sees_output:
                    one.hook(self.module, args, *((kwargs,) if one.with_kwargs else ()))
            output = self.plain(*args, **kwargs)
            while due:
                due.pop(0).hook(self.module, args, output)
        finally:
            for one in due:
                if one.always_call:
                    one.hook(self.module, args, output)
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        if self.own is not None:
            return operator.getitem, ([self.own], 0)
        # A copy is asked before it has attributes of its own: it gives its class's forward.
        return getattr, (self.module, "forward")


def _put_on(
    module: nn.Module,
    hook: Hook,
    *,
    sees_output: bool = False,
    with_kwargs: bool = False,
    always_call: bool = False,
) -> Handle:
    wrapped = vars(module).get("forward")
    if not isinstance(wrapped, _WrappedForward):
        wrapped = _WrappedForward(module)
        vars(module)["forward"] = wrapped
    one = _On(hook, sees_output, with_kwargs, always_call)
    wrapped.hooks = (*wrapped.hooks, one)
    return _Wrap(wrapped, one)


@dataclass
class _Wrap:
    """A hook's place on a wrapped ``forward``."""

    wrapped: _WrappedForward
    one: _On

    def remove(self) -> None:
        wrapped = self.wrapped
        wrapped.hooks = tuple(one for one in wrapped.hooks if one is not self.one)
        own = vars(wrapped.module)
        # Whoever has wrapped it once more since keeps what he holds: it runs no hook any more.
        if not wrapped.hooks and own.get("forward") is wrapped:
            del own["forward"]
            if wrapped.own is not None:
                own["forward"] = wrapped.own
