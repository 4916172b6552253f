"""The hooks: put on a tower's blocks, never in the way, gone without a trace.

Only outputs are looked at: of the blocks, of what makes the pooled vector and, for the size of
the picture (and its pixels, where a head asks), of the patch embedding; the input of the first
block; that the tower starts and, where it is told how its tokens are laid out, its arguments. Two
on the host and each module around its tower notice prompts without a picture.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clipdepth_plugin.adapters.graphs import in_cuda_graph
from clipdepth_plugin.adapters.hooks import Hook
from clipdepth_plugin.adapters.layouts import POSITIONS, TowerCall
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.prompts import grows, prompt_of
from clipdepth_plugin.adapters.structure import block_lists, modules_around
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.adapters.trim import check_not_left_out


class _LeaveTower(BaseException):
    """Ends a tower's forward once all that is wanted has been seen; no error, so no Exception."""


class Taps:
    """The hooks of one recorder on one tower of one host.

    Attributes:
        owner: Whose they are.
    """

    def __init__(
        self, host: nn.Module, tower: Tower, recorder: PassRecorder, owner: object
    ) -> None:
        self._host = host
        self._tower = tower
        self._recorder = recorder
        self.owner = owner
        self._parameters = parameters_of(tower.module)
        self._handles: list[RemovableHandle] = []
        self._users = 0
        self._lock = threading.Lock()

    @property
    def installed(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def install(self) -> None:
        """Puts the hooks on, all or none; to be undone by one ``remove`` for each ``install``."""
        with self._lock:
            if self._users == 0:
                self._install()
            self._users += 1

    def remove(self) -> None:
        """Takes the hooks off once nobody in any thread needs them; harmless when they are off."""
        with self._lock:
            self._users = max(self._users - 1, 0)
            if self._users == 0:
                self._clear()

    def _install(self) -> None:
        tower, wanted = self._tower, self._recorder.wanted
        check_not_left_out(tower, wanted)
        try:
            self._watch_host()
            start = tower.module.register_forward_pre_hook
            self._add(start, self._on_tower_starts, with_kwargs=True)
            for module in _padders(tower):
                self._add(module.register_forward_pre_hook, self._on_picture)
            self._add(tower.patch_embed.register_forward_hook, self._on_patch_embed)
            if wanted.rule.proves:
                first = tower.blocks[0].register_forward_pre_hook
                self._add(first, self._on_first_block, with_kwargs=True)
            for level in wanted.levels:
                if level == 0:
                    first = tower.blocks[0]
                    self._add(first.register_forward_pre_hook, self._on_input, with_kwargs=True)
                else:
                    self._add(tower.blocks[level - 1].register_forward_hook, self._on_level(level))
            if wanted.context == "pooled" and tower.pooled is not None:
                self._add(tower.pooled.module.register_forward_hook, self._on_pooled)
        except BaseException:
            self._clear()
            raise

    def _watch_host(self) -> None:
        around = modules_around(self._host, self._tower.path)
        hosts = [
            m for number, m in enumerate(around) if _takes_prompts(m, self._tower, number == 0)
        ]
        for number, module in enumerate(hosts):
            starts, ends = self._on_host_starts(number), self._on_host_ends(number)
            self._add(module.register_forward_pre_hook, starts, with_kwargs=True)
            self._add(module.register_forward_hook, ends, always_call=True)
        # Such as SiglipVisionModel before transformers 5.6, or Ovis2VisionModel.
        for module in around[len(hosts) : len(hosts) + 1]:
            self._add(module.register_forward_pre_hook, self._on_wrapper_starts)
            self._add(module.register_forward_hook, self._on_wrapper_ends, always_call=True)

    def _clear(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _add(
        self, register: Callable[..., RemovableHandle], call: Callable[..., None], **options: Any
    ) -> None:
        self._handles.append(register(Hook(self.owner, call), **options))

    def _on_host_starts(self, number: int) -> Callable[..., None]:
        def on_start(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self._recorder.host_starts(number):
                slot, prompt = self._recorder.slot, prompt_of(args, kwargs)
                talk = slot.conversation
                talk.last_forward_ran_tower(slot.passes_inside)
                goes_on = talk.goes_on(prompt, kwargs) or grows(prompt, slot.prompt)
                # Token ids only: embeddings or pixels would be large to keep.
                slot.prompt = prompt if prompt is not None and prompt.ndim == 2 else None
                picture = slot.last is not None and not slot.claimed
                self._recorder.host_claims(afresh=not goes_on)
                talk.forward(kwargs, afresh=not goes_on, picture=picture)

        return on_start

    def _on_host_ends(self, number: int) -> Callable[..., None]:
        return lambda module, args, output: self._recorder.host_ends(number)

    def _on_wrapper_starts(self, module: nn.Module, args: Any) -> None:
        self._recorder.wrapper_starts()

    def _on_wrapper_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        self._recorder.wrapper_ends()

    def _on_tower_starts(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keeps references to what says how the tokens are laid out; the pass before is over."""
        self._recorder.tower_starts()
        names = self._recorder.wanted.rule.reads
        if not names:
            return
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        self._recorder.slot.arguments = {
            name: given[name] for name in names if given.get(name) is not None
        }

    def _on_picture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._recorder.slot.picture = tuple(args[0].shape)

    def _on_patch_embed(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        pixels, slot = args[0], self._recorder.slot
        shape = tuple(pixels.shape) if slot.picture is None else slot.picture
        call = TowerCall(slot.arguments, shape, tuple(output.shape))
        slot.arguments, slot.picture = {}, None
        self._recorder.begin(call)
        if self._recorder.wanted.pixels and slot.running is not None:
            slot.running.take_pixels(pixels)

    def _on_first_block(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running = self._recorder.slot.running
        if running is not None and kwargs.get(POSITIONS) is not None:
            running.take_positions(kwargs[POSITIONS])

    def _on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._take(0, next(tensors, None))

    def _on_level(self, level: int) -> Callable[..., None]:
        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            self._take(level, output)

        return on_output

    def _on_pooled(self, module: nn.Module, args: Any, output: Any) -> None:
        if (running := self._recorder.slot.running) is not None and self._tower.pooled is not None:
            running.take_pooled(self._tower.pooled.take(output))
            self._settle(running)

    def _take(self, level: int, output: Any) -> None:
        running = self._recorder.slot.running
        if running is None:
            return
        if running.hosts_own and in_cuda_graph():
            self._recorder.drop_captured()
            return
        x = output[0] if isinstance(output, list | tuple) else output
        if isinstance(x, Tensor):
            running.take_level(level, x)
            self._settle(running)

    def _settle(self, running: TowerPass) -> None:
        """Leaves the tower when nothing more is wanted of it and the caller said so."""
        slot = self._recorder.slot
        if slot.leave and running.complete:
            raise _LeaveTower


def owners(tower: Tower) -> list[object]:
    """Whose hooks are on a tower now."""
    hooks = tower.patch_embed._forward_hooks.values()
    return [hook.owner for hook in hooks if isinstance(hook, Hook)]


@contextlib.contextmanager
def leaving_early(recorder: PassRecorder, *, allowed: bool) -> Iterator[None]:
    """Ends the tower's forward inside when the pass is complete, where that is ``allowed``."""
    slot = recorder.slot
    slot.leave = allowed
    try:
        yield
    except _LeaveTower:
        pass
    finally:
        slot.leave = False


def may_leave_early(tower: Tower, tower_kwargs: dict[str, Any]) -> bool:
    """Whether an exception may end the tower's forward: not where others count on its end.

    Offloading (accelerate) and sharding (FSDP) put weights away after a forward; compiled code
    cannot be left by an exception; some releases of transformers wrap blocks while they record
    hidden states or attentions, and unwrap them at the end.
    """
    config = getattr(tower.module, "config", None)
    recorded = ("output_hidden_states", "output_attentions")
    if any(tower_kwargs.get(name) or getattr(config, name, False) for name in recorded):
        return False
    return not any(
        hasattr(module, "_hf_hook")
        or getattr(module, "_compiled_call_impl", None) is not None
        or "_orig_mod" in module._modules  # torch.compile(module)
        or type(module).__name__.startswith(("FSDP", "FullySharded"))
        for module in tower.module.modules()
    )


def _padders(tower: Tower) -> list[nn.Module]:
    """The module of timm's around the patch embedding, which may pad pictures to whole patches."""
    return [
        module
        for module in tower.module.modules()
        if hasattr(module, "dynamic_img_pad") and tower.patch_embed in module.children()
    ]


def _takes_prompts(module: nn.Module, tower: Tower, outermost: bool) -> bool:
    """Whether a module around the tower does more than to see: it has blocks beside the tower's.

    The host itself does so, too, where it has any weights beside the tower's.
    """
    if outermost:
        own = {id(p) for p in tower.module.parameters()}
        return any(id(p) not in own for p in module.parameters())
    seeing = {one.blocks[0] for one in block_lists(tower.module)} | {*tower.blocks}
    return any(one.blocks[0] not in seeing for one in block_lists(module))
