"""Whether a forward of a host goes on with what it saw, or is given something new."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from clipdepth_plugin.adapters.graphs import in_cuda_graph

# transformers says "cache" from 5.24 on; before, it said the others.
_CACHES = ("cache", "past_key_values", "past_key_value", "cache_params")


def prompt_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The token ids (or their embeddings) of a forward, where it has such."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(value, Tensor):
            return value.detach()
    return None


def continues(prompt: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether a forward goes on with an earlier prompt: after a cache that is not empty."""
    for name in _CACHES:
        cache = kwargs.get(name)
        count = getattr(cache, "get_seq_length", None)
        if count is None and not isinstance(cache, Sized):
            continue  # none, or another thing of that name (a flag)
        one_token = prompt is not None and prompt.shape[1:2] == (1,)
        if torch.compiler.is_compiling():  # the cache's length may not be traceable
            return one_token
        try:
            length = count() if count is not None else len(cast("Sized", cache))
        except (LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return one_token  # a cache of states, which has no length
        if isinstance(length, int):
            return length > 0
        # A count on the device is not waited for where one new token tells as much.
        return one_token or (not in_cuda_graph() and int(length) > 0)
    return False


def _nothing() -> None:
    """As a weak reference to what is gone."""


@dataclass(frozen=True)
class _Prompt:
    """What a cache held before a prompt, and at least after it."""

    cache: Callable[[], object] = _nothing
    before: int = 0
    after: int = 0


class Conversation:
    """Which caches the last picture is in, as far as forwards without it do not tell.

    A prompt after a cache that is not empty is a new one all the same where the picture is not in
    that cache: a system prompt's, kept and copied for each request, or another conversation's.
    """

    def __init__(self) -> None:
        self._prompt = self._now = _Prompt()
        self._length: int | None = None
        self._without: weakref.WeakSet[Any] = weakref.WeakSet()

    def goes_on(self, prompt: Tensor | None, kwargs: dict[str, Any]) -> bool:
        """Whether a forward goes on with the last prompt that was a new one or had a picture."""
        cache = _cache_of(kwargs)
        length = self._length = None if torch.compiler.is_compiling() else _tokens_in(cache)
        if length == 0 or not continues(prompt, kwargs):
            return False
        if length is None:  # not known without waiting for a device, or without a length
            return True
        if any(cache is one for one in self._without):
            return False
        last = self._prompt
        # Its own cache may lose tokens of it again: guesses that an assistant made.
        return length > last.before if cache is last.cache() else length >= last.after

    def forward(
        self, prompt: Tensor | None, kwargs: dict[str, Any], *, afresh: bool, picture: bool
    ) -> None:
        """A forward starts, of which ``goes_on`` has been asked.

        Args:
            prompt: Of it.
            kwargs: Of it.
            afresh: Whether it is a new prompt.
            picture: Whether the tower has run for it already.
        """
        if torch.compiler.is_compiling():
            return
        cache, before = _cache_of(kwargs), self._length or 0
        tokens = prompt is not None and prompt.ndim in (2, 3)  # ids, or their embeddings
        after = before + (prompt.shape[1] if prompt is not None and tokens else 1)
        self._now = _Prompt(before=before, after=after)
        with contextlib.suppress(TypeError):  # tuples of older releases, new at each token
            self._now = _Prompt(weakref.ref(cache), before, after)
            if afresh:
                self._without.add(cache)
        if picture:
            self.has_picture()
        elif afresh:
            self._prompt = self._now

    def has_picture(self) -> None:
        """The tower runs for the forward at hand."""
        if torch.compiler.is_compiling():
            return
        self._prompt, cache = self._now, self._now.cache()
        if cache is not None:
            self._without.discard(cache)


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def _tokens_in(cache: Any) -> int | None:
    """How many tokens a cache holds, where it says so without a device being waited for."""
    try:
        length = cache.get_seq_length()
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return length if isinstance(length, int) else None


def grows(prompt: Tensor | None, before: Tensor | None) -> bool:
    """Whether a prompt is the one before it with one token more: generation without a cache."""
    if prompt is None or before is None or torch.compiler.is_compiling():
        return False
    if prompt.ndim != 2 or before.ndim != 2 or prompt.device != before.device:
        return False
    longer = (before.shape[0], before.shape[1] + 1) == tuple(prompt.shape)
    return longer and torch.equal(prompt[:, :-1], before)
