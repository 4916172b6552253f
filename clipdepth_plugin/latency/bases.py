"""What depth is added to: one pass of a host's tower, and the prefill around it.

Axes: B views, H W pixels, T tokens of the prompt.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import BenchError

BaseScope = Literal["tower", "prefill", "whole"]
"""``tower``: the vision tower alone. ``prefill``: picture and prompt through a multimodal model,
before its first token. ``whole``: a host's own forward that is neither."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Base:
    """One pass of a host, or of a part of it.

    Attributes:
        scope: What of it.
        call: Makes the pass.
        tokens: Length of the prompt, where there is one.
    """

    scope: BaseScope
    call: Call = field(repr=False)
    tokens: int | None = None


def make_pixels(tower: Tower, batch: int, size: tuple[int, int] | None = None) -> Tensor:
    """(B, 3, H, W) random pixels of the tower's own size, on its device and in its dtype.

    Raises:
        BenchError: No size is given, and the tower does not say its own.
    """
    size = size or tower.image_size
    if size is None:
        raise BenchError(f"the tower {tower} does not say its input size: give --size")
    weight = next(tower.patch_embed.parameters())
    draws = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *size, generator=draws).to(weight)


def tower_base(tower: Tower, pixels_B3HW: Tensor) -> Base:
    """A pass of the tower alone; made once here, to see that it can be.

    Raises:
        BenchError: The pixels are not of the tower's own size, and it can't take another; or it
            takes more than pixels.
    """
    arguments: dict[str, Any] = {}
    size = tuple(pixels_B3HW.shape[-2:])
    resized = tower.image_size is not None and size != tower.image_size
    # Not all that can run at another size have to be told to.
    if resized and _takes(tower.module, "interpolate_pos_encoding"):
        arguments["interpolate_pos_encoding"] = True
    base = Base("tower", lambda: tower.module(pixels_B3HW, **arguments))
    explained = _size_explained(tower, size) if resized else _refusals_explained(tower.module)
    with explained, torch.no_grad():
        base.call()
    return base


def has_prefill(model: nn.Module) -> bool:
    """Whether a model has a language model that reads picture tokens (transformers' config)."""
    return _image_token(model) is not None


def prefill_base(model: nn.Module, pixels_B3HW: Tensor, text_tokens: int = 32) -> Base:
    """A multimodal model's pass over a prompt: the picture's tokens, then text.

    Args:
        model: A transformers model with ``get_image_features``.
        pixels_B3HW: One picture for each row of the prompt.
        text_tokens: Tokens beside those of the picture.

    Raises:
        BenchError: The model takes more than token ids and pixels; says what to do.
    """
    token = _image_token(model)
    vocabulary = _vocabulary(model)
    if token is None or vocabulary is None:
        raise BenchError(f"{type(model).__name__} has no image token in its config: no prefill")
    batch = len(pixels_B3HW)
    with _refusals_explained(model, "prompt"), torch.no_grad():
        count = _count_image_tokens(model, pixels_B3HW) // batch
        ids_BT = _prompt(batch, count, text_tokens, token, vocabulary).to(pixels_B3HW.device)
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        if _takes(model, "logits_to_keep"):
            inputs["logits_to_keep"] = 1  # as generate() does
        model(pixel_values=pixels_B3HW, **inputs)
    return Base("prefill", lambda: model(pixel_values=pixels_B3HW, **inputs), ids_BT.shape[1])


def _image_token(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    return None


def _vocabulary(model: nn.Module) -> int | None:
    text = getattr(getattr(model, "config", None), "text_config", None)
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None


def _count_image_tokens(model: Any, pixels_B3HW: Tensor) -> int:
    """Tokens that all pictures together take in the prompt."""
    found = model.get_image_features(pixel_values=pixels_B3HW)
    found = getattr(found, "pooler_output", found)  # transformers 5 wraps them
    parts = [found] if isinstance(found, Tensor) else list(found)
    return sum(part.numel() // part.shape[-1] for part in parts)


def _prompt(batch: int, pictures: int, text: int, token: int, vocabulary: int) -> Tensor:
    """(B, T) token ids, one beginning token first; text is any id but the picture's."""
    draws = torch.Generator().manual_seed(0)
    text_BT = torch.randint(3, vocabulary - 1, (batch, max(text, 1)), generator=draws)
    text_BT[text_BT == token] = 3
    picture_BT = torch.full((batch, pictures), token)
    return torch.cat([text_BT[:, :1], picture_BT, text_BT[:, 1:]], dim=1)


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


@contextlib.contextmanager
def _size_explained(tower: Tower, size: tuple[int, ...]) -> Iterator[None]:
    """Turns what a tower raises on pixels of another size than its own into an error."""
    try:
        yield
    except Exception as error:  # towers raise almost anything
        raise BenchError(
            f"the tower {tower} is made for {tower.image_size} and can't be run at {size} "
            f"({type(error).__name__}: {error}); give a size that it takes"
        ) from error


@contextlib.contextmanager
def _refusals_explained(module: nn.Module, what: str = "pass") -> Iterator[None]:
    """Turns what a model raises on inputs that do not suit it into an error that says so."""
    try:
        yield
    except Exception as error:  # models raise almost anything on inputs that are not theirs
        rest = "token ids and (B, 3, H, W) pixels" if what == "prompt" else "(B, 3, H, W) pixels"
        raise BenchError(
            f"no {what} that {type(module).__name__} takes can be made of {rest} alone "
            f"({type(error).__name__}: {error}); measure its tower with --scope tower, or call "
            "audit() with Base(scope, call)s of your own"
        ) from error
