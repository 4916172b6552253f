"""Runs a tower alone, for a caller of its own, no further than its taps need.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.level_hook import leaving_early
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.taps import Taps, owners
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import Run

_RECORDED = ("output_hidden_states", "output_attentions")


class TowerRunner:
    """A tower as a function; what it looks up in the tower is kept between calls."""

    def __init__(self, tower: Tower, taps: Taps, recorder: PassRecorder) -> None:
        """Looks at the tower when it first runs."""
        self._tower = tower
        self._taps = taps
        self._recorder = recorder
        self._state = TowerState(tower.module)

    def run(self, pixels_B3HW: Tensor, tower_kwargs: dict[str, Any]) -> TowerPass:
        """One tower pass without a graph; seen by no other recorder."""
        if torch.compiler.is_dynamo_compiling() and self._recorder.attached:
            # No lock, and no early end, in a graph: a compiler drops what nobody reads by itself.
            seen = self._seen(pixels_B3HW, tower_kwargs)
        else:
            early = leaving_early(self._recorder, allowed=self._may_leave_early(tower_kwargs))
            self._taps.install(watch=False)
            try:
                seen = self._seen(pixels_B3HW, tower_kwargs, early)
            finally:
                self._taps.remove()
        if not seen:
            raise NoDepthError(
                f"the tower {self._tower} ran without its patch embedding being called: it was "
                "compiled or graphed before; attach the plug-in first, then call it"
            )
        return seen[-1]

    def runs(self, views: Sequence[Tensor]) -> list[Run]:
        """The features of normalised views (3, H, W) of any sizes, in their order.

        Raises:
            ImageError: The tower takes no pictures of such a size.
        """
        found = []
        for some in in_one_pass(self._tower, [view.shape[1:] for view in views]):
            pixels, said = packed(self._tower, views[some])
            one = self.run(pixels, said)
            found += [
                Run(features, its.pixel_size)
                for features, its in zip(one.batches, one.views, strict=True)
            ]
        return found

    def _seen(
        self,
        pixels_B3HW: Tensor,
        tower_kwargs: dict[str, Any],
        early: AbstractContextManager[None] | None = None,
    ) -> list[TowerPass]:
        """The passes of one call of the tower."""
        with self._recorder.privately() as seen, torch.no_grad(), early or nullcontext():
            self._tower.module(as_tower_takes(pixels_B3HW, self._tower), **tower_kwargs)
        return seen

    def _may_leave_early(self, tower_kwargs: dict[str, Any]) -> bool:
        """Whether nobody else needs the end of the tower's forward, which an exception would skip.

        Others: another plug-in's taps; transformers that unwraps the blocks which it records.
        """
        for owner in owners(self._tower):
            if owner is not self._taps.owner:
                return False
        config = getattr(self._tower.module, "config", None)
        for name in _RECORDED:
            if tower_kwargs.get(name) or getattr(config, name, False):
                return False
        return self._state.may_leave_early()


def packed(tower: Tower, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """A tower's arguments for views (3, H, W) of any sizes: pixels, and the others by name.

    Raises:
        ImageError: The tower takes none of such sizes in one pass, or no pictures alone.
    """
    pixels, said = tower.rule.pack(views)
    taken, device = parameters_of(tower.module), _device(tower, pixels)
    return pixels, {name: x.to(device) for name, x in said.items() if name in taken}


def in_one_pass(tower: Tower, sizes: Sequence[Any]) -> list[slice]:
    """Which neighbours a tower sees in one pass: all, or those of one size.

    ``sizes`` are any values that are equal where sizes are.
    """
    if tower.rule.mixes_sizes:
        return [slice(0, len(sizes))]
    ends = [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]]
    return [slice(*pair) for pair in itertools.pairwise([0, *ends, len(sizes)])]


class TowerState:
    """Whether modules of a tower need its forward to end; looked at anew where one has changed.

    Offloading and sharding put weights away after it; an exception can't leave compiled code.
    """

    def __init__(self, tower: nn.Module) -> None:
        self._tower = tower
        self._modules: list[tuple[dict[str, nn.Module | None], str, nn.Module, type]] = []
        self._may_leave = False

    def may_leave_early(self) -> bool:
        """Compares every module with what was found last time: a loop without a call."""
        if not self._may_leave:
            return self._look()
        for siblings, name, module, kind in self._modules:
            if (
                name not in siblings
                or siblings[name] is not module
                or module.__class__ is not kind
                or "_hf_hook" in module.__dict__
                or "_compiled_call_impl" in module.__dict__
            ):
                return self._look()
        return True

    def _look(self) -> bool:
        root: dict[str, nn.Module | None] = {"": self._tower}
        found = [(root, "", self._tower, type(self._tower))]
        for parent in self._tower.modules():
            for name, child in parent._modules.items():
                if child is not None:
                    found.append((parent._modules, name, child, type(child)))
        may_leave = not any(
            "_hf_hook" in module.__dict__
            or module._compiled_call_impl is not None
            or name == "_orig_mod"  # torch.compile(module)
            or kind.__name__.startswith(("FSDP", "FullySharded"))
            for _, name, module, kind in found
        )
        self._modules, self._may_leave = found, may_leave
        return may_leave


def as_tower_takes(pixels_B3HW: Tensor, tower: Tower) -> Tensor:
    """On the tower's device and in its dtype; as they are where its weights are offloaded."""
    weight = next(tower.patch_embed.parameters())
    device = _device(tower, pixels_B3HW)
    dtype = weight.dtype if weight.is_floating_point() else pixels_B3HW.dtype
    return pixels_B3HW.to(device, dtype)


def _device(tower: Tower, pixels: Tensor) -> torch.device:
    weight = next(tower.patch_embed.parameters())
    return pixels.device if weight.is_meta else weight.device
