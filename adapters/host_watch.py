"""The hooks around a tower: they notice forwards of the host that show it no picture."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from clipdepth_plugin.adapters.hooks import Hook, Registration
from clipdepth_plugin.adapters.modules import block_lists
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.prompts import grows, prompt_of
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.towers import Tower


def watching(
    host: nn.Module, tower: Tower, recorder: PassRecorder, owner: object
) -> Iterator[Registration]:
    """The hooks on the modules that take prompts, and on the one inside them around the tower."""
    around = modules_around(host, tower.path)
    hosts = [one for number, one in enumerate(around) if _takes_prompts(one, tower, number == 0)]

    for number, module in enumerate(hosts):
        start, end = (Hook(owner, partial(do, recorder, number)) for do in (_starts, _ends))
        yield module.register_forward_pre_hook, start, {"with_kwargs": True}
        yield module.register_forward_hook, end, {"always_call": True}
    # Such as SiglipVisionModel before transformers 5.6, or Ovis2VisionModel.
    for module in around[len(hosts) : len(hosts) + 1]:
        start = Hook(owner, lambda *_: recorder.wrapper_starts())
        end = Hook(owner, lambda *_: recorder.wrapper_ends())
        yield module.register_forward_pre_hook, start, {}
        yield module.register_forward_hook, end, {"always_call": True}


def _starts(recorder: PassRecorder, number: int, _: nn.Module, args: Any, kwargs: Any) -> None:
    if recorder.host_starts(number):
        slot, prompt = recorder.slot, prompt_of(args, kwargs)
        talk = slot.conversation
        talk.last_forward_ran_tower(slot.passes_inside)
        goes_on = talk.goes_on(prompt, kwargs) or grows(prompt, slot.prompt)
        # Token ids only: embeddings or pixels would be large to keep.
        slot.prompt = prompt if prompt is not None and prompt.ndim == 2 else None
        picture = slot.last is not None and not slot.claimed
        recorder.host_claims(afresh=not goes_on)
        talk.forward(kwargs, afresh=not goes_on, picture=picture)


def _ends(recorder: PassRecorder, number: int, *_: Any) -> None:
    recorder.host_ends(number)


def _takes_prompts(module: nn.Module, tower: Tower, outermost: bool) -> bool:
    """Whether a module around the tower does more than to see: it has blocks beside the tower's.

    The host itself does so, too, where it has any weights beside the tower's.
    """
    if outermost:
        own = {id(p) for p in tower.module.parameters()}
        return any(id(p) not in own for p in module.parameters())
    seeing = {one.blocks[0] for one in block_lists(tower.module)} | {*tower.blocks}
    return any(one.blocks[0] not in seeing for one in block_lists(module))
