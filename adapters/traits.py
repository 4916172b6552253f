"""Tower traits: what a family file says of a tower, and what is read off one of no known family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from clipdepth_plugin.adapters.layout_rules import LayoutRule
from clipdepth_plugin.adapters.preprocessing import Preprocessing


@dataclass(frozen=True)
class PooledTap:
    """Where the tower's own pooled vector passes by, at the tower's width.

    ``take`` makes (B, D) of the module's output: of the last, where it runs several times in a
    pass.
    """

    module: nn.Module
    take: Callable[[Tensor], Tensor]


LLAVA_KIN = frozenset(
    {
        *("llava", "llava_next", "llava_next_video", "llava_onevision"),
        *("aya_vision", "video_llava", "vipllava"),
    }
)
"""Model types that read nothing of a tower but hidden states, where state k is what block k gives:
read in get_image_features and get_video_features of transformers 4.57, 5.5 and 5.24."""


@dataclass(frozen=True)
class TowerTraits:
    """What structure alone does not tell of a tower.

    Attributes:
        family: Name of the family, for people.
        num_prefix_tokens: Tokens before the patches: class, distillation, registers.
        has_class_token: Whether there is a class token; the first token, where no ``rule`` says.
        pooled: Where to tap the pooled vector; None where the tower makes none.
        preprocessing: What is known of the host's preprocessing.
        image_size: (H, W) the tower was made for, where it says.
        rule: Makes the layout of each pass; None: a row of prefix tokens and patches a picture.
        more_blocks: Blocks of a second list that follow those found.
        patch_blocks: How many of the first blocks give all patches, each a token; None: all do.
        stem: The module that is given the pictures, where that is none that the structure shows: it
            cuts them into patches.
        read_by: Model types of hosts that read nothing of the tower but hidden states.
    """

    family: str
    num_prefix_tokens: int = 0
    has_class_token: bool = False
    pooled: PooledTap | None = field(default=None, repr=False)
    preprocessing: Preprocessing | None = None
    image_size: tuple[int, int] | None = None
    rule: LayoutRule | None = field(default=None, repr=False)
    more_blocks: tuple[nn.Module, ...] = field(default=(), repr=False)
    patch_blocks: int | None = None
    stem: nn.Module | None = field(default=None, repr=False)
    read_by: frozenset[str] = field(default=frozenset(), repr=False)


def parameters_of(tower: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a tower's forward in their order, as far as it shows them."""
    return tuple(_signature(tower))


def required_by(tower: nn.Module) -> tuple[str, ...]:
    """Those of them that it cannot do without."""
    kind = inspect.Parameter
    return tuple(
        name
        for name, one in _signature(tower).items()
        if one.default is kind.empty and one.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
    )


def _signature(tower: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(tower.forward).parameters
    except (TypeError, ValueError):
        return {}


def as_is(pooled_BD: Tensor) -> Tensor:
    """The tapped output is (B, D) already."""
    return pooled_BD


def first_token(x: Tensor) -> Tensor:
    """The class token of (B, N, D); a (B, D) is one already."""
    return x[:, 0] if x.ndim == 3 else x


def mean_after_first(x: Tensor) -> Tensor:
    """The mean of all tokens but the class token; a (B, D) is one already."""
    return x[:, 1:].mean(dim=1) if x.ndim == 3 else x


_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding")
_OTHER_PREFIX_TOKENS = (
    *("dist_token", "distillation_token", "reg_token", "register_tokens", "storage_tokens"),
)
PREFIX_TOKENS = (*_CLASS_TOKENS, *_OTHER_PREFIX_TOKENS)
"""Names of learnt tokens that stand before the patches."""


def count_prefix_tokens(tower: nn.Module, width: int) -> tuple[int, bool]:
    """(number of prefix tokens, whether one is a class token) by names; each pass checks it."""
    total, has_class = 0, False
    for name, parameter in tower.named_parameters():
        *around, leaf = name.split(".")
        # A head's own (AIMv2's attention pooling has one) joins after the blocks.
        if parameter.shape[-1:] != (width,) or "head" in around:
            continue
        if leaf in _CLASS_TOKENS:
            # Pixio's holds several, of which the first is read.
            total, has_class = total + parameter.numel() // width, True
        elif leaf in _OTHER_PREFIX_TOKENS:
            total += parameter.numel() // width
    return total, has_class


def image_size_of(tower: nn.Module) -> tuple[int, int] | None:
    """The size a Hugging Face tower's config states."""
    size = getattr(getattr(tower, "config", None), "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def model_type_of(module: nn.Module) -> str:
    """The ``model_type`` of a Hugging Face module's config; "" where it has none."""
    return str(getattr(getattr(module, "config", None), "model_type", ""))


def generic(tower: nn.Module, width: int) -> TowerTraits:
    """What is assumed of a tower that no family file knows: nothing but its structure."""
    prefix, has_class = count_prefix_tokens(tower, width)
    return TowerTraits("unknown", prefix, has_class, image_size=image_size_of(tower))


def published(
    tower: nn.Module, normalisation: tuple[tuple[float, float, float], tuple[float, float, float]]
) -> Preprocessing | None:
    """A Hugging Face tower's size with its family's normalisation; how it resizes stays open."""
    size = image_size_of(tower)
    return None if size is None else Preprocessing(*normalisation, size)
