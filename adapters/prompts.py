"""Whether a forward of a host goes on with what it saw, or is given something new."""

from __future__ import annotations

from collections.abc import Sized
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


def grows(prompt: Tensor | None, before: Tensor | None) -> bool:
    """Whether a prompt is the one before it with one token more: generation without a cache."""
    if prompt is None or before is None or torch.compiler.is_compiling():
        return False
    if prompt.ndim != 2 or before.ndim != 2 or prompt.device != before.device:
        return False
    longer = (before.shape[0], before.shape[1] + 1) == tuple(prompt.shape)
    return longer and torch.equal(prompt[:, :-1], before)
