"""Leaves out a tower's last blocks where neither its host nor the head reads what they make.

LLaVA and its kin read a hidden state before the last (``vision_feature_layer``: -2). While a
plug-in is attached, such a block's ``forward`` gives back its input.
"""

from __future__ import annotations

import inspect
from typing import Any, get_origin

import torch
from torch import nn

from clipdepth_plugin.adapters.forwards import output_hooks
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import model_type_of
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.errors import HeadMismatchError

# What says which hidden states a host reads; the first one that is given holds.
_CONFIG_FIELDS = ("vision_feature_layer", "vision_feature_layers")


class _PassThrough:
    """Stands in for a block's ``forward``; a copied or pickled block has its own one again."""

    def __init__(self, block: nn.Module, *, as_tuple: bool) -> None:
        self._block = block
        self._as_tuple = as_tuple

    def __call__(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if self._as_tuple else hidden_states

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is asked before it has attributes of its own: it gives its class's forward.
        return getattr, (self._block, "forward")


class Trim:
    """What ``attach(..., trim=True)`` leaves out.

    Attributes:
        blocks: Module paths of the blocks; none where nothing can be left out.
        why: Why these, or why none; and what a caller of the tower sees.
    """

    def __init__(self, tower: Tower, why: str, keep: int) -> None:
        self.blocks = tuple(f"{tower.blocks_path}.{index}" for index in range(keep, tower.depth))
        self.why = why
        self._left_out = tower.blocks[keep:]
        self._installed: list[tuple[nn.Module, _PassThrough, Any]] = []
        pooled = [] if tower.pooled is None else [tower.pooled.module]
        self._changed = (*self._left_out, *pooled) if self._left_out else ()

    def __str__(self) -> str:
        return f"{', '.join(self.blocks) or 'nothing'} left out: {self.why}"

    def install(self) -> None:
        """Leaves the blocks out.

        Raises:
            HeadMismatchError: Another plug-in reads what they make.
        """
        if any(output_hooks(module) for module in self._changed):
            raise HeadMismatchError(
                "trim: a plug-in on this tower reads blocks that would be left out: attach "
                "without trim, or detach that one first"
            )
        for block in self._left_out:
            if _is_left_out(block):
                continue  # by another plug-in
            stand_in = _PassThrough(block, as_tuple=bool(_gives_tuple(block)))
            self._installed.append((block, stand_in, vars(block).get("forward")))
            vars(block)["forward"] = stand_in

    def remove(self) -> None:
        """Lets the blocks run again; harmless where they do."""
        while self._installed:
            block, stand_in, before = self._installed.pop()
            if vars(block).get("forward") is stand_in:
                del vars(block)["forward"]
                if before is not None:
                    vars(block)["forward"] = before


def plan_trim(host: nn.Module, tower: Tower, wanted: Wanted | None = None) -> Trim:
    """What can be left out of a tower, by its host's own config; None: whatever the head reads."""
    states = states_read(host, tower)
    reads = states if isinstance(states, str) else max(states)
    head = 0 if wanted is None else wanted.last_level
    needed = tower.depth if isinstance(reads, str) else max(reads, head, 1)
    keep = tower.depth
    if isinstance(reads, str):
        why = reads
    elif wanted is not None and wanted.context == "pooled":
        why = "the head reads the pooled vector, which comes of the last block"
    elif needed == tower.depth:
        why = f"the host reads level {reads}, the head level {head}: all blocks run"
    elif any(_gives_tuple(block) is None for block in tower.blocks[needed:]):
        why = "blocks are wrapped, compiled, or left out by another plug-in"
    else:
        keep = needed
        why = (
            f"the host reads no level after {reads}, the head none after {head}. Who reads the "
            f"tower's last_hidden_state or a hidden state after level {keep} (as by giving the "
            f"host another vision_feature_layer) gets level {keep}"
        )
    return Trim(tower, why, keep)


def states_read(host: nn.Module, tower: Tower) -> tuple[int, ...] | str:
    """The levels that are all that a host reads of its tower, or why they are not known."""
    if not tower.read_by:
        return f"no host is known to read just hidden states of {tower.family} towers"
    modules = modules_around(host, tower.path)
    around: list[Any] = [one for one in modules if model_type_of(one) in tower.read_by]
    if not around:
        return "this host is not known to read just hidden states of its tower"
    layers: list[int] = []
    for reader in around:
        said = (getattr(reader.config, name, None) for name in _CONFIG_FIELDS)
        given: Any = next((one for one in said if one is not None), [])
        layers += given if isinstance(given, list | tuple) else [given]
    states = tower.depth + 1
    if not layers or not all(isinstance(k, int) and -states <= k < states for k in layers):
        return f"the host's config names none of its tower's {states} hidden states"
    return tuple(sorted({layer % states for layer in layers}))


def _is_left_out(block: nn.Module) -> bool:
    return isinstance(vars(block).get("forward"), _PassThrough)


def _gives_tuple(block: nn.Module) -> bool | None:
    """Whether a block's forward gives a tuple, or else a tensor; None where that is not known."""
    own = vars(block).get("forward")
    replaced = own is not None and getattr(own, "__func__", None) is not type(block).forward
    if replaced or getattr(block, "_compiled_call_impl", None) is not None:
        return None
    said = inspect.signature(type(block).forward).return_annotation
    if said in (torch.Tensor, torch.FloatTensor):
        return False
    return True if get_origin(said) is tuple else None


def check_not_left_out(tower: Tower, wanted: Wanted) -> None:
    """Raises HeadMismatchError where a plug-in with ``trim`` leaves out what a head reads."""
    level = tower.depth if wanted.context == "pooled" else max(wanted.last_level, 1)
    if _is_left_out(tower.blocks[level - 1]):
        raise HeadMismatchError(
            f"another plug-in leaves out {tower.blocks_path}.{level - 1} (trim=True), which this "
            "head needs: detach that one, or attach it without trim"
        )
