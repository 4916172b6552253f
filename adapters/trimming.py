"""Leaves out blocks that a host runs and throws away, where that cannot be noticed.

LLaVA and its kin read hidden state -2 of their tower: the last block runs for nothing. Only
``get_image_features`` of the families below is known to look at no other state. What it returns
also holds the tower's last state, so it must be known, too, who takes that. Both are read off the
frames above a tower pass: ``generate()``, which returns tokens, or a forward whose outputs have no
room for it (transformers before 5.24). In every other pass all blocks run.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from clipdepth_plugin.adapters.passes import Wanted
from clipdepth_plugin.adapters.taps import Hook
from clipdepth_plugin.adapters.towers import Tower

logger = logging.getLogger(__name__)

# Read in transformers 4.57, 5.5 and 5.24: their get_image_features and get_video_features take
# hidden_states[layer] of the tower's output, and nothing else of it.
_FAMILIES = frozenset(
    f"transformers.models.{name}.modeling_{name}"
    for name in (
        "aya_vision",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "video_llava",
        "vipllava",
    )
)
_ENTRIES = ("get_image_features", "get_video_features")
_LAYERS = ("vision_feature_layer", "vision_feature_layers")
_LIBRARIES = ("clipdepth_plugin", "contextlib", "functools", "torch", "transformers")
_MISSING = object()


@dataclass(frozen=True)
class TrimPlan:
    """What ``attach(..., trim=True)`` can leave out.

    Attributes:
        blocks: Module paths of the blocks that neither the host nor the head needs.
        why: Why these, or why none.
    """

    blocks: tuple[str, ...]
    why: str


def plan_trim(host: nn.Module, tower: Tower, last_level: int, *, pooled: bool) -> TrimPlan:
    """What of a tower can be left out of a host's own passes.

    Args:
        host: The host.
        tower: Its tower.
        last_level: The deepest level that the head reads.
        pooled: Whether the head reads the tower's pooled vector.
    """
    owner, _ = _owner(host, tower)
    if owner is None:
        return TrimPlan((), "this host is not of a family known to read one hidden state only")
    layers = next((v for n in _LAYERS if (v := getattr(owner.config, n, None)) is not None), None)
    needed = _deepest(layers, tower.depth)
    if needed is None:
        return TrimPlan((), "the host's config names no vision_feature_layer")
    if pooled:
        return TrimPlan((), "the head reads the pooled vector, which all blocks make")
    keep = max(needed, last_level)
    if keep >= tower.depth:
        return TrimPlan((), f"the host reads level {needed}, the head level {last_level}: all run")
    paths = tuple(f"{tower.blocks_path}.{index}" for index in range(keep, tower.depth))
    return TrimPlan(
        paths, f"the host reads no further than level {needed}, the head than {last_level}"
    )


class Trim:
    """Leaves blocks out of the passes of one tower, as far as a plan goes.

    Attributes:
        plan: What can be left out.
        passes: Passes that went without these blocks.
    """

    def __init__(
        self,
        tower: Tower,
        around: Sequence[nn.Module],
        plan: TrimPlan,
        owner: object,
        last_level: int,
    ) -> None:
        self.plan = plan
        self.passes = 0
        self._tower = tower
        self._owner = owner
        self._last_level = last_level
        self._handles: list[RemovableHandle] = []
        self._here = threading.local()
        self._lock = threading.Lock()
        self._skips: dict[nn.Module, _Skip] = {}
        # From what the host's model calls down to the tower, which it is in recent releases.
        self._around = tuple(around)

    @classmethod
    def of(cls, host: nn.Module, tower: Tower, owner: object, wanted: Wanted) -> Trim:
        """Plans it, and says in the log what can be left out, or why nothing."""
        last_level = wanted.levels[-1]
        plan = plan_trim(host, tower, last_level, pooled=wanted.context == "pooled")
        blocks = ", ".join(plan.blocks) or "nothing"
        logger.info("trim: %s can be left out: %s", blocks, plan.why)
        return cls(tower, _between(host, tower), plan, owner, last_level)

    def install(self) -> None:
        """Watches the tower, where there is anything to leave out."""
        if self.plan.blocks and not self._handles:
            module = self._tower.module
            start, end = Hook(self._owner, self._start), Hook(self._owner, self._end)
            see = Hook(self._owner, self._see)
            self._handles = [
                module.register_forward_pre_hook(start, with_kwargs=True),
                # Before another plug-in's that began earlier: what was put on last comes off first.
                module.register_forward_hook(end, prepend=True, always_call=True),
                self._tower.blocks[0].register_forward_hook(see),
            ]

    def remove(self) -> None:
        """All blocks run again."""
        while self._handles:
            self._handles.pop().remove()

    def _start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or module.training:
            return
        if kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False):
            return
        needed = _deepest(_layers_that_count(sys._getframe(1)), self._tower.depth)
        if needed is None:
            return
        skipped = self._tower.blocks[max(needed, self._last_level, 1) :]
        if skipped and self._unwatched(skipped):
            self._here.skipped = frozenset(map(id, skipped))
            with self._lock:
                self.passes += 1
                for block in skipped:
                    self._skips.setdefault(block, _Skip(block, self._here)).enter()

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        self._here.in_tuple = isinstance(output, tuple)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        skipped = getattr(self._here, "skipped", None)
        if skipped is not None:
            self._here.skipped = None
            with self._lock:
                for block, skip in self._skips.items():
                    if id(block) in skipped:
                        skip.leave()

    def _unwatched(self, skipped: Sequence[nn.Module]) -> bool:
        """Whether nobody looks at what these blocks, or what comes after them, would give."""
        tower = self._tower
        if torch.nn.modules.module._global_forward_hooks:
            return False
        kept = [tower.patch_embed, *tower.blocks[: -len(skipped)]]
        before = {id(inner) for module in kept for inner in module.modules()}
        return all(
            not hasattr(module, "_hf_hook")
            and all(self._harmless(hook, module) for hook in _hooks_of(module))
            for module in self._around[0].modules()
            if id(module) not in before
        )

    def _harmless(self, hook: Any, module: nn.Module) -> bool:
        if isinstance(hook, Hook):  # another plug-in's, further in, wants what these blocks give
            return hook.owner is self._owner or module in self._around
        return str(getattr(hook, "__module__", "")).startswith("transformers.")


class _Skip:
    """Stands in for a block's forward while a pass that leaves it out runs in some thread."""

    def __init__(self, block: nn.Module, here: threading.local) -> None:
        self._block = block
        self._here = here
        self._users = 0
        self._before: Any = _MISSING

    def enter(self) -> None:
        if self._users == 0:
            self._before = vars(self._block).get("forward", _MISSING)
            vars(self._block)["forward"] = self
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            if self._before is _MISSING:
                del vars(self._block)["forward"]
            else:
                vars(self._block)["forward"] = self._before

    def __call__(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self._block) in (getattr(self._here, "skipped", None) or ()):
            return (hidden_states,) if self._here.in_tuple else hidden_states
        before = self._before
        run = type(self._block).forward.__get__(self._block) if before is _MISSING else before
        return run(hidden_states, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A host that another thread copies meanwhile has its own block's forward.
        return getattr, (self._block, "forward")


def _owner(host: nn.Module, tower: Tower) -> tuple[Any, str]:
    """The model that calls the tower, where it is of a family that is known, and its path."""
    parts = tower.path.split(".") if tower.path else []
    for count in range(len(parts) - 1, -1, -1):
        path = ".".join(parts[:count])
        module = host.get_submodule(path)
        if type(module).__module__ in _FAMILIES:
            return module, path
    return None, ""


def _between(host: nn.Module, tower: Tower) -> list[nn.Module]:
    """The modules from what that model calls to the tower, outermost first."""
    _, above = _owner(host, tower)
    parts = tower.path.split(".") if tower.path else []
    first = len(above.split(".")) + 1 if above else 1
    paths = [".".join(parts[:count]) for count in range(first, len(parts) + 1)]
    return [host.get_submodule(path) for path in paths] or [tower.module]


def _deepest(layers: Any, depth: int) -> int | None:
    """The deepest level among indices of hidden states, negative ones from behind."""
    indices = [layers] if isinstance(layers, int) else layers
    if not isinstance(indices, list | tuple) or not indices:
        return None
    if not all(isinstance(index, int) and -depth - 1 <= index <= depth for index in indices):
        return None
    return int(max(index % (depth + 1) for index in indices))


def _layers_that_count(frame: FrameType | None) -> Any:
    """The hidden states that reach whoever asked for this pass; None where that is not known."""
    layers = None
    while frame is not None:
        name, module = frame.f_code.co_name, str(frame.f_globals.get("__name__"))
        if layers is None and name in _ENTRIES and module in _FAMILIES:
            given = frame.f_locals
            layers = next((v for n in _LAYERS if (v := given.get(n)) is not None), None)
            if layers is None:
                return None
        elif layers is not None and (name, module) == ("generate", "transformers.generation.utils"):
            return layers if _gives_tokens_only(frame.f_locals) else None
        elif layers is not None and name == "forward" and module in _FAMILIES:
            if not _shows_tower(module):
                return layers
        elif module.partition(".")[0] not in _LIBRARIES:
            return None
        frame = frame.f_back
    return None


def _gives_tokens_only(given: Mapping[str, Any]) -> bool:
    """Whether ``generate`` keeps what the tower gave to itself."""
    own = given.get("custom_generate") is None
    return own and "mm_encoder_outputs" not in given.get("kwargs", {})


def _shows_tower(module: str) -> bool:
    """Whether the outputs of a family's forward hold all that its tower gave."""
    kinds = vars(sys.modules[module]).values()
    return any("image_outputs" in getattr(kind, "__dataclass_fields__", {}) for kind in kinds)


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()
