"""Whether a forward of a host continues the last prompt, or starts a new one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from torch import Tensor

from clipdepth_plugin.adapters.hooks import in_graph

# transformers says "cache" from 5.24 on; before, it said the others.
_CACHES = ("cache", "past_key_values", "past_key_value", "cache_params")


def prompt_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The token ids (or their embeddings) of a forward, or None."""
    named = (kwargs.get(name) for name in ("input_ids", "decoder_input_ids", "inputs_embeds"))
    for value in (*named, *args[:1]):
        if isinstance(value, Tensor):
            return value.detach()
    return None


def continues(prompt: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether a forward continues an earlier prompt: it has a cache that is not empty."""
    for name in _CACHES:
        cache = kwargs.get(name)
        count = getattr(cache, "get_seq_length", None)
        if count is None and not isinstance(cache, Sized):
            continue  # none, or another thing of that name (a flag)
        one_token = prompt is not None and prompt.shape[1:2] == (1,)
        try:
            length = count() if count is not None else len(cast("Sized", cache))
        except (LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return one_token  # a cache of states, which has no length
        if isinstance(length, int):
            return length > 0
        # A count on the device is not waited for where a single new token says as much.
        return one_token or (not in_graph() and int(length) > 0)
    return False


def _nothing() -> None:
    """As a weak reference to what is gone."""


class Conversation:
    """Which caches do not hold the last picture, as far as is known.

    With one of these a prompt is a new one though its cache is not empty: a kept prefix (as long as
    what the picture's own prompt continued), prompts without a picture, another picture. A copy
    that is longer than what the picture's prompt continued is taken for one that holds it.
    """

    def __init__(self) -> None:
        self._cache: Callable[[], object] = _nothing  # of the last prompt that was a new one,
        self._before = 0  # and how long it was before that
        self._now: tuple[Callable[[], object], int] = (_nothing, 0)
        self._without: weakref.WeakSet[Any] = weakref.WeakSet()
        self._length: int | None = None
        self._passes = 0

    def goes_on(self, prompt: Tensor | None, kwargs: dict[str, Any]) -> bool:
        """Whether a forward continues the last prompt that was a new one or had a picture."""
        cache = _cache_of(kwargs)
        length = self._length = None if torch.compiler.is_compiling() else _tokens_in(cache)
        if kwargs.get("encoder_outputs") is not None:  # the encoder's own forward had the prompt
            return True
        if length == 0 or not continues(prompt, kwargs):
            return False
        if length is None:  # not known without waiting for a device, or without a length
            return True
        # Its own cache may be shorter than it left it: guesses of an assistant are taken back.
        return length > self._before and not any(cache is one for one in self._without)

    def forward(self, kwargs: dict[str, Any], *, afresh: bool, picture: bool) -> None:
        """A forward starts, of which ``goes_on`` has been asked."""
        if torch.compiler.is_compiling():
            return
        cache, before = _cache_of(kwargs), self._length or 0
        self._now = _nothing, before
        with contextlib.suppress(TypeError):  # tuples of older releases, new at each token
            self._now = weakref.ref(cache), before
            if afresh:
                self._without.add(cache)
        if picture:
            self._has_picture()
        elif afresh:
            self._turn()

    def last_forward_ran_tower(self, passes: int) -> None:
        """Takes the number of passes begun inside forwards, which compiled code cannot count."""
        if passes != self._passes and not torch.compiler.is_compiling():
            self._passes = passes
            self._has_picture()

    def _has_picture(self) -> None:
        cache = self._now[0]()
        if cache is not None:
            self._without.discard(cache)
        self._turn()

    def _turn(self) -> None:
        """Moves on to the forward at hand: the former one's cache does not hold its picture."""
        former = self._cache()
        self._cache, self._before = self._now
        if former is not None and former is not self._cache():
            self._without.add(former)


def _cache_of(kwargs: dict[str, Any]) -> Any:
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def _tokens_in(cache: Any) -> int | None:
    """How many tokens a cache holds; None where that is not known without waiting for a device."""
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
