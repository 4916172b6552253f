"""The hooks on a tower and around it: they look, replace nothing, and leave no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from clipdepth_plugin.adapters.forwards import after, before, output_hooks
from clipdepth_plugin.adapters.hooks import Handle, Hook, Registration
from clipdepth_plugin.adapters.layout_rules import COS_SIN, POSITIONS, TowerCall
from clipdepth_plugin.adapters.level_hook import LeaveTower, LevelHook
from clipdepth_plugin.adapters.modules import block_lists
from clipdepth_plugin.adapters.named_pictures import NamesHook, watch
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.prompts import grows, prompt_of
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.threads import changing
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.adapters.trim import check_not_left_out

_WITH_KWARGS = {"with_kwargs": True}


class Taps:
    """The hooks of one recorder on one tower of one host; ``owner``: whose they are.

    ``pipeline``: LeRobot's, which prepares the host's batches.

    Attributes:
        names_pictures: Whether the host takes its pictures by name.
    """

    def __init__(
        self,
        host: nn.Module,
        tower: Tower,
        recorder: PassRecorder,
        owner: object,
        pipeline: object = None,
    ) -> None:
        self._tower = tower
        self._recorder = recorder
        self.owner = owner
        self._parameters = parameters_of(tower.module)
        self._reads = tower.rule.reads
        self._on_tower = list(self._tower_hooks())
        around = modules_around(host, tower.path)
        named = list(watch(around, pipeline, NamesHook(owner, recorder.names_seen)))
        self.names_pictures = bool(named)
        self._on_host = [*_around(around, tower, recorder, owner), *named]
        self._handles: list[Handle] = []
        self._users = 0
        self._watches = False
        self._lock = threading.Lock()

    @property
    def installed(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def install(self, *, watch: bool = True) -> None:
        """Puts the hooks on, all or none; to be undone by one ``remove`` for each ``install``.

        Waits for who changes or compiles a host now, unless the hooks are on already.
        """
        check_not_left_out(self._tower, self._recorder.wanted)
        with self._lock:
            if self._users and (self._watches or not watch):
                self._users += 1
                return
        with changing(), self._lock:
            try:
                if self._users == 0:
                    self._register(self._on_tower)
                if watch and not self._watches:
                    self._register(self._on_host)
                    self._watches = True
            except BaseException:
                if self._users == 0:
                    self._clear()
                raise
            self._users += 1

    def remove(self) -> None:
        """Takes the hooks off once nobody in any thread needs them; harmless when they are off."""
        with self._lock:
            if self._users > 1:
                self._users -= 1
                return
        with changing(), self._lock:
            self._users = max(self._users - 1, 0)
            if self._users == 0:
                self._clear()

    def _register(self, hooks: Sequence[Registration]) -> None:
        for register, hook, options in hooks:
            self._handles.append(register(hook, **options))

    def _clear(self) -> None:
        self._watches = False
        while self._handles:
            self._handles.pop().remove()

    def _tower_hooks(self) -> Iterator[Registration]:
        tower, wanted = self._tower, self._recorder.wanted
        first = before(tower.blocks[0])
        start = before(tower.module)
        yield start, self._with_kwargs(self._on_tower_starts), _WITH_KWARGS
        for module in _padders(tower):
            yield before(module), Hook(self.owner, self._on_picture), {}
        yield after(tower.patch_embed), Hook(self.owner, self._on_patch_embed), {}
        if tower.rule.proves:
            yield first, self._with_kwargs(self._on_first_block), _WITH_KWARGS
        for level in wanted.levels:
            hook = LevelHook(self.owner, self._recorder, level)
            if level == 0:
                yield first, self._with_kwargs(partial(_give_input, hook)), _WITH_KWARGS
            else:
                yield after(tower.blocks[level - 1]), hook, {}
        if wanted.context == "pooled" and tower.pooled is not None:
            pooled = after(tower.pooled.module)
            yield pooled, Hook(self.owner, self._on_pooled), {}

    def _with_kwargs(self, call: Callable[..., None]) -> Hook:
        return Hook(self.owner, call, with_kwargs=True)

    def _on_tower_starts(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keeps references to what says how the tokens are laid out; the pass before is over."""
        self._recorder.tower_starts()
        if self._reads:
            given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
            self._recorder.thread.forward.arguments = {
                name: given[name] for name in self._reads if given.get(name) is not None
            }

    def _on_picture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._recorder.thread.forward.picture = tuple(args[0].shape)

    def _on_patch_embed(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        pixels, forward = args[0], self._recorder.thread.forward
        if forward.running is not None and self._tower.rule.sees_each_alone:
            # A tower that starts ends the pass before, so this is one more picture of the same.
            forward.running.take_next_pixels(pixels)
            return
        shape = tuple(pixels.shape) if forward.picture is None else forward.picture
        call = TowerCall(forward.arguments, shape, tuple(output.shape))
        forward.arguments, forward.picture = {}, None
        self._recorder.begin(call, output)
        if forward.running is not None:
            forward.running.take_pixels(pixels)
        rule = self._tower.rule
        if forward.leave_with_pixels and not (rule.proves or rule.sees_each_alone):
            raise LeaveTower

    def _on_first_block(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running = self._recorder.thread.forward.running
        if running is None:
            return
        cos_sin = tuple(kwargs[name] for name in COS_SIN if name in kwargs)
        positions = kwargs.get(POSITIONS, cos_sin or None)
        if positions is not None:
            running.take_positions(positions)
        if self._recorder.thread.forward.leave_with_pixels:
            raise LeaveTower

    def _on_pooled(self, module: nn.Module, args: Any, output: Any) -> None:
        forward = self._recorder.thread.forward
        if forward.running is not None and self._tower.pooled is not None:
            forward.running.take_pooled(self._tower.pooled.take(output))
            if forward.leave and forward.running.complete:
                raise LeaveTower


def _give_input(hook: LevelHook, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
    """Gives level 0 to its hook: the first block's input."""
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    hook(next(tensors, None))


def owners(tower: Tower) -> list[object]:
    """Whose hooks are on a tower now."""
    return [hook.owner for hook in output_hooks(tower.patch_embed)]


def _padders(tower: Tower) -> list[nn.Module]:
    """The module of timm's around the patch embedding, which may pad pictures to whole patches."""
    return [
        module
        for module in tower.module.modules()
        if hasattr(module, "dynamic_img_pad") and tower.patch_embed in module.children()
    ]


def _around(
    around: list[nn.Module], tower: Tower, recorder: PassRecorder, owner: object
) -> Iterator[Registration]:
    """The hooks on the modules that take prompts, and on the one inside them around the tower.

    They notice forwards of the host that show it no picture.
    """
    hosts = [one for number, one in enumerate(around) if _takes_prompts(one, tower, number == 0)]

    for number, module in enumerate(hosts):
        start = Hook(owner, partial(_starts, recorder, number), with_kwargs=True)
        end = Hook(owner, partial(_ends, recorder, number))
        yield before(module), start, _WITH_KWARGS
        yield after(module), end, {"always_call": True}
    # Such as SiglipVisionModel before transformers 5.6, or Ovis2VisionModel.
    for module in around[len(hosts) : len(hosts) + 1]:
        start = Hook(owner, lambda *_: recorder.wrapper_starts())
        end = Hook(owner, lambda *_: recorder.wrapper_ends())
        yield before(module), start, {}
        yield after(module), end, {"always_call": True}


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
