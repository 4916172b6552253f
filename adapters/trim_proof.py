"""Whether anybody could tell that blocks were left out of a tower pass; where one could, why.

Two things must hold. What the tower gave reaches nobody but the host's own code, which reads one
hidden state: that is read off the frames above the pass. And nobody looks inside: no hook, no
code of another hand, in what does not run or in what is told what it gave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from clipdepth_plugin.adapters.skipping import Skip
from clipdepth_plugin.adapters.taps import Hook, is_noop
from clipdepth_plugin.adapters.trim_plan import FAMILIES, layers_in

_ENTRIES = ("get_image_features", "get_video_features")
_GENERATION = "transformers.generation.utils"
# Between the tower and what calls it: nothing there keeps what the tower gave.
_PASSING_ON = ("clipdepth_plugin", "contextlib", "functools", "torch", "transformers")
# Whose modules do nothing beside computing their outputs.
_PURE = ("transformers", "torch.nn", "torch.ao", "torchao", "bitsandbytes", "peft")
_IMPURE = ("torch.nn.parallel",)
_DECORATORS = ("contextlib", "functools", "torch.utils._contextlib")


class NotProvenError(Exception):
    """Somebody could tell, or it is not known that nobody can; the message says who."""


def check_circumstances(tower: nn.Module) -> None:
    """Refuses passes that are recorded in any way: by autograd, a compiler, a tracer.

    Raises:
        NotProvenError: This is one.
    """
    if torch.is_grad_enabled():
        raise NotProvenError("gradients are enabled: run it under torch.no_grad()")
    if torch._C._get_tracing_state() is not None:
        raise NotProvenError("it is traced")
    if any(module.training for module in tower.modules()):
        raise NotProvenError("the tower, or a part of it, is in training mode")


def layers_that_count(frame: FrameType | None) -> Any:
    """The hidden states that reach whoever asked for this pass.

    Raises:
        NotProvenError: More of what the tower gave may reach somebody, or it is compiled.
    """
    layers, found = None, False
    while frame is not None:
        name, module = frame.f_code.co_name, str(frame.f_globals.get("__name__"))
        if module.startswith("torch._dynamo"):
            raise NotProvenError("torch.compile is at work")
        if found:
            pass  # the rest is only searched for a compiler
        elif layers is None and name in _ENTRIES and module in FAMILIES:
            layers = layers_in(frame.f_locals)
            if layers is None:
                raise NotProvenError(f"{name} was not told which hidden states to take")
        elif layers is not None and (name, module) == ("generate", _GENERATION):
            _check_generates_tokens(frame.f_locals)
            found = True
        elif layers is not None and name == "forward" and module in FAMILIES:
            found = not shows_tower(module)
        elif _root(module) not in _PASSING_ON:
            raise NotProvenError(f"{module}.{name} gets all that the tower gives")
        frame = frame.f_back
    if not found:
        raise NotProvenError("neither generate() nor a known host's forward runs it")
    return layers


def shows_tower(module: str) -> bool:
    """Whether the outputs of a family's forward hold all that its tower gave."""
    kinds = vars(sys.modules[module]).values()
    return any("image_outputs" in getattr(kind, "__dataclass_fields__", {}) for kind in kinds)


def check_unwatched(
    modules: Iterable[nn.Module], harmless: Callable[[Any, nn.Module], bool]
) -> None:
    """Refuses where anybody looks at what these modules give, or stands in for them.

    Args:
        modules: Those that do not run, that come after them, or that hold them.
        harmless: Whether a hook on one of them may be there.

    Raises:
        NotProvenError: Somebody does.
    """
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        raise NotProvenError("a global forward hook sees every module")
    known: set[type] = set()
    for module in modules:
        kind, name = type(module), type(module).__name__
        if hasattr(module, "_hf_hook"):
            raise NotProvenError(f"accelerate moves {name}'s weights or outputs")
        if any(not harmless(hook, module) for hook in _hooks_of(module)):
            raise NotProvenError(f"a hook on {name} sees what it gives")
        if (own := _shadowed(module)) is not None:
            raise NotProvenError(f"something stands in for {name}.{own}")
        if kind not in known and not _is_pure(kind):
            raise NotProvenError(f"{name} is not of a library that is known")
        known.add(kind)


def _check_generates_tokens(given: Mapping[str, Any]) -> None:
    """Whether ``generate`` keeps what the tower gave to itself."""
    model = given.get("self")
    if type(model).__module__ not in FAMILIES or not isinstance(model, nn.Module):
        raise NotProvenError(f"{type(model).__name__} is not a host that is known")
    if given.get("custom_generate") is not None:
        raise NotProvenError("custom_generate sees what the tower gives")
    if "mm_encoder_outputs" in given.get("kwargs", {}):
        raise NotProvenError("the caller keeps mm_encoder_outputs")
    check_unwatched(_told(model), lambda hook, _: isinstance(hook, Hook) or is_noop(hook))


def _told(model: nn.Module) -> Iterator[nn.Module]:
    """The host's own modules, which are handed all that the tower gave."""
    yield model
    for child in model.children():
        if type(child).__module__ in FAMILIES:
            yield from _told(child)


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()


def _shadowed(module: nn.Module) -> str | None:
    """A method that an attribute of the object stands in for, but for one that is the same."""
    for name, value in vars(module).items():
        if isinstance(value, Skip):
            continue
        if callable(value) and callable(own := getattr(type(module), name, None)):
            same = getattr(value, "__func__", None) is own
            # transformers before 5 leaves bound methods behind where it recorded outputs.
            if not (same and getattr(value, "__self__", None) is module):
                return name
    return "forward" if getattr(module, "_compiled_call_impl", None) is not None else None


def _is_pure(kind: type) -> bool:
    """Whether a class and its forward, decorators and all, are of libraries that are known."""
    if not _known_home(kind.__module__):
        return False
    forward = getattr(kind, "forward", None)
    while forward is not None:
        home = str(getattr(forward, "__globals__", {}).get("__name__"))
        if not _known_home(home) and home not in _DECORATORS:
            return False
        forward = getattr(forward, "__wrapped__", None)
    return True


def _known_home(module: str) -> bool:
    def within(names: tuple[str, ...]) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in names)

    return within(_PURE) and not within(_IMPURE)


def _root(module: str) -> str:
    return module.partition(".")[0]
