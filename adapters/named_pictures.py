"""Policies that take pictures by name (LeRobot's): which tower pass shows which.

Such a policy makes its tower's input of a batch in a method of its own. While a plug-in is attached
that method is watched: the batch, and the tower passes since, tell whose picture a pass shows. No
order is believed: the policy prepares a picture alone once more, when its depth is asked for, and
the pass that saw these very pixels is that picture's.

Axes: B pictures of one name (a batch), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.hooks import Hook, Registration
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.errors import HostError, NoDepthError

_METHODS = ("prepare_images", "_preprocess_images")
"""Take a batch; return pictures (B, 3, H, W) in a list, and which of B are real, (B,) for each.
Those that are not in the batch are left out, or filled in behind the others."""


@dataclass
class NamedPictures:
    """One batch that a policy prepared.

    Attributes:
        names: The pictures that the policy can take.
        batch: What it was given.
        prepare: Its own method.
        passes: The tower passes since, in order.
    """

    names: tuple[str, ...]
    batch: dict[str, Any]
    prepare: Callable[[dict[str, Any]], tuple[list[Tensor], list[Tensor]]]
    passes: list[TowerPass] = field(default_factory=list)

    def take(self, one: TowerPass) -> None:
        """Keeps a tower pass; no more than the policy has pictures."""
        if len(self.passes) < len(self.names):
            one.keeps_pixels = True
            self.passes.append(one)

    def find(self, name: str) -> tuple[TowerPass, Tensor, Tensor]:
        """The pass that shows a picture, its pixels (B, 3, H, W), and which of B are real, (B,).

        Raises:
            HostError: The policy has no picture of that name.
            NoDepthError: It was not in the batch, or no pass saw it for certain.
        """
        if name not in self.names:
            raise HostError(f"{name!r} is no picture of this policy: it has {_listed(self.names)}")
        if name not in self.batch:
            given = [one for one in self.names if one in self.batch]
            raise NoDepthError(
                f"{name!r} was not in the batch, so the tower saw nothing of it (what a policy "
                f"fills in for it has no depth): the batch had {_listed(given)}"
            )
        others = {one for one in self.names if one != name}
        alone = {one: value for one, value in self.batch.items() if one not in others}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            pictures, real = self.prepare(alone)
        pixels_B3HW, real_B = pictures[0], real[0].bool()
        for one in self.passes:
            if one.saw(pixels_B3HW):
                return one, pixels_B3HW, real_B
        raise NoDepthError(
            f"none of the {len(self.passes)} tower passes since the policy prepared its pictures "
            f"saw the pixels of {name!r}: the batch was written into since, the policy prepares "
            "pictures at random or otherwise beside others, or its tower has not run. Read .depth, "
            "or plugin.capture(), whose order is the policy's own"
        )


class _Watched:
    """In the place of a policy's method: the same, and hooks that see the batch first.

    A copy or a file of the policy has the plain method instead.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self.method = getattr(module, name)
        self._own = module.__dict__.get(name)
        self._hooks: list[Hook] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = args[0] if args else kwargs.get("batch")
        for hook in self._hooks:
            hook(batch, self.method)
        return self.method(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, self._name)

    def add(self, hook: Hook) -> None:
        self._hooks.append(hook)

    def remove(self, hook: Hook) -> None:
        self._hooks.remove(hook)
        if not self._hooks:
            del self._module.__dict__[self._name]
            if self._own is not None:
                self._module.__dict__[self._name] = self._own


@dataclass
class _Handle:
    watched: _Watched
    hook: Hook

    def remove(self) -> None:
        self.watched.remove(self.hook)


def watch(
    around: list[nn.Module], owner: object, prepared: Callable[[NamedPictures], None]
) -> Iterator[Registration]:
    """The hook on the method of the innermost policy among the modules around a tower, if any."""
    for module in reversed(around):
        names = getattr(getattr(module, "config", None), "image_features", None)
        methods = [name for name in _METHODS if callable(getattr(type(module), name, None))]
        if isinstance(names, Mapping) and methods:
            hook = Hook(owner, partial(_see, module, prepared))
            yield partial(_put_on, module, methods[0]), hook, {}
            return


def _put_on(module: nn.Module, name: str, hook: Hook) -> _Handle:
    watched = module.__dict__.get(name)
    if not isinstance(watched, _Watched):
        watched = _Watched(module, name)
        module.__dict__[name] = watched
    watched.add(hook)
    return _Handle(watched, hook)


def _see(module: Any, prepared: Callable[[NamedPictures], None], batch: Any, method: Any) -> None:
    if isinstance(batch, Mapping):
        # Named anew each time, as policies add to their features.
        prepared(NamedPictures(tuple(module.config.image_features), dict(batch), method))


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
