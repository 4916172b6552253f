"""Policies that take pictures by name (LeRobot's): what they were run on, and the tower passes.

While a plug-in is attached, the methods that run a policy are watched, and the steps of the
pipeline that prepares its batches where that was given. What is kept of a batch is enough to show
the policy other pictures in its place: ``shown_again`` tells by that which view is whose.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from clipdepth_plugin.adapters.hooks import Hook, Registration
from clipdepth_plugin.adapters.passes import TowerPass

_METHODS = ("select_action", "predict_action_chunk", "forward")
"""LeRobot's: each takes a batch first."""


@dataclass(frozen=True)
class Stage:
    """A place on the way to the tower where pictures have names.

    Attributes:
        where: What it is called.
        batch: What was there.
        go_on: The rest of the way, on another batch.
    """

    where: str
    batch: Mapping[str, Any]
    go_on: Callable[[dict[str, Any]], Any]


@dataclass
class NamedPictures:
    """One batch that a policy was run on.

    Attributes:
        policy: The policy.
        names: The pictures that it can take.
        stages: In the order in which the batch passed them.
        passes: The tower passes, in order.
    """

    policy: nn.Module
    names: tuple[str, ...]
    stages: list[Stage]
    passes: list[TowerPass] = field(default_factory=list)

    def take(self, one: TowerPass) -> None:
        """Keeps a tower pass; no more than the policy has pictures."""
        if len(self.passes) < len(self.names):
            one.keeps_pixels = True
            self.passes.append(one)


@dataclass
class NamesSeen:
    """What one thread (and asyncio task) sees of policies.

    Attributes:
        last: The last batch that the tower has run on.
        prepared: The stages of the pipeline's last run.
        running: The batch that the policy runs on now, and in how many watched methods it is.
        newest: The last tower pass of that run.
    """

    last: NamedPictures | None = None
    prepared: list[Stage] = field(default_factory=list)
    running: NamedPictures | None = None
    depth: int = 0
    newest: TowerPass | None = None

    def starts(self, policy: Any, stage: Stage) -> None:
        """A method of the policy starts; of methods inside each other the outermost comes first."""
        if self.running is None:
            before = [replace(one, go_on=_chain(one.go_on, stage.go_on)) for one in self.prepared]
            # Named anew each time, as policies add to their features.
            names = tuple(policy.config.image_features)
            self.running = NamedPictures(policy, names, [*before, stage])
        else:
            self.running.stages.append(stage)
        self.depth += 1

    def ends(self, *, failed: bool) -> None:
        """It is over."""
        self.depth -= 1
        if failed:
            self.last = None
        if self.depth == 0:
            self.running = self.newest = None

    def take(self, one: TowerPass) -> None:
        """A tower pass begins."""
        if self.running is not None:
            self.last, self.newest = self.running, one
            self.last.take(one)


class NamesHook(Hook):
    """Sees a policy's methods, and a pipeline's steps; ``seen``: where to, None: not now."""

    def __init__(self, owner: object, seen: Callable[[], NamesSeen | None]) -> None:
        self.owner = owner
        self.seen = seen


class _Watched:
    """In the place of a policy's method: the same, and hooks that see the batch.

    A copy or a file of the policy has the plain method instead.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self._own = module.__dict__.get(name)
        self.method = getattr(module, name)
        self._hooks: list[NamesHook] = []
        functools.update_wrapper(self, self.method, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = args[0] if args else kwargs.get("batch")
        if torch.compiler.is_dynamo_compiling() or not isinstance(batch, Mapping):
            return self.method(*args, **kwargs)
        stage = Stage(self._name, dict(batch), functools.partial(self._again, args[1:], kwargs))
        seen = [one for one in (hook.seen() for hook in self._hooks) if one is not None]
        for one in seen:
            one.starts(self._module, stage)
        failed = True
        try:
            output = self.method(*args, **kwargs)
            failed = False
        finally:
            for one in seen:
                one.ends(failed=failed)
        return output

    def _again(self, args: Any, kwargs: dict[str, Any], batch: dict[str, Any]) -> Any:
        if self._name == "select_action":  # without the actions that it has ready
            self._module.reset()  # type: ignore[operator]
        kwargs = {name: value for name, value in kwargs.items() if name != "batch"}
        return self.method(batch, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, self._name)

    def add(self, hook: NamesHook) -> None:
        self._hooks.append(hook)

    def remove(self, hook: NamesHook) -> None:
        self._hooks.remove(hook)
        # Whoever has wrapped it since (accelerate) keeps it: without hooks it is the plain method.
        if not self._hooks and self._module.__dict__.get(self._name) is self:
            del self._module.__dict__[self._name]
            if self._own is not None:
                self._module.__dict__[self._name] = self._own


@dataclass
class _Handle:
    take_off: Callable[[], None]

    def remove(self) -> None:
        self.take_off()


def watch(around: list[nn.Module], pipeline: Any, hook: NamesHook) -> Iterator[Registration]:
    """The hooks on the innermost policy among the modules around a tower, if any."""
    for module in reversed(around):
        names = getattr(getattr(module, "config", None), "image_features", None)
        methods = [name for name in _METHODS if callable(getattr(type(module), name, None))]
        if isinstance(names, Mapping) and len(methods) == len(_METHODS):
            for name in methods:
                yield functools.partial(_watch_method, module, name), hook, {}
            if pipeline is not None:
                yield functools.partial(_watch_pipeline, pipeline), hook, {}
            return


def _watch_method(module: nn.Module, name: str, hook: NamesHook) -> _Handle:
    watched = module.__dict__.get(name)
    if not isinstance(watched, _Watched):
        watched = _Watched(module, name)
        module.__dict__[name] = watched
    watched.add(hook)
    return _Handle(functools.partial(watched.remove, hook))


def is_pipeline(processor: object) -> bool:
    """Whether it is LeRobot's pipeline of steps, which prepares batches for a policy."""
    return callable(getattr(processor, "register_before_step_hook", None))


class _StepHook(Hook):
    """Before each step of a pipeline: keeps what the rest of the steps is given."""

    def __init__(self, pipeline: Any, hook: NamesHook) -> None:
        self.owner = hook.owner
        self._pipeline, self._hook = pipeline, hook

    def __call__(self, *args: Any) -> None:
        """(number of the step, transition)."""
        number, transition = args
        seen = self._hook.seen()
        if seen is None:
            return
        if number == 0:
            seen.prepared = []
        if isinstance(batch := transition.get("observation"), Mapping):
            given = {key: _top(value) for key, value in transition.items()}
            go_on = functools.partial(self._again, number, given)
            where = type(self._pipeline.steps[number]).__name__
            seen.prepared.append(Stage(where, dict(batch), go_on))

    def _again(self, number: int, given: dict[Any, Any], batch: dict[str, Any]) -> Any:
        transition: Any = {key: _top(value) for key, value in given.items()}
        transition["observation"] = batch
        for step in self._pipeline.steps[number:]:
            transition = copy.copy(step)(transition)  # which may note what it has seen
        return self._pipeline.to_output(transition)


def _watch_pipeline(pipeline: Any, hook: NamesHook) -> _Handle:
    step_hook = _StepHook(pipeline, hook)
    pipeline.register_before_step_hook(step_hook)
    return _Handle(functools.partial(_take_off, pipeline, step_hook))


def _take_off(pipeline: Any, step_hook: _StepHook) -> None:
    hooks = pipeline.before_step_hooks
    hooks[:] = [one for one in hooks if one is not step_hook]


def _chain(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda batch: then(first(batch))


def _top(value: Any) -> Any:
    """A copy as far as steps write into it."""
    return dict(value) if isinstance(value, dict) else value
