"""The parts of a vision tower, found by structure: patch embeddings and lists of blocks.

Names tell only attention ("attn", "attention") and a linear map of patches ("patch").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module"}
"""Where torch.compile(block) and torch's checkpoint_wrapper(block) keep the block."""


@dataclass(frozen=True)
class PatchEmbedding:
    """The module that makes patch tokens of RGB pictures, or of patches that the host has cut.

    Attributes:
        patch_size: (height, width) of a patch in pixels.
        packed: Whether it maps patches that are cut already: it says nothing of their order.
        padding: (above and below, left and right) pixels that it puts around a picture.
        frames: How many frames a patch has.
    """

    path: str
    module: nn.Module
    width: int
    patch_size: tuple[int, int]
    packed: bool = False
    padding: tuple[int, int] = (0, 0)
    frames: int = 1


@dataclass(frozen=True)
class BlockList:
    """A list of like attention blocks."""

    path: str
    blocks: tuple[nn.Module, ...]
    width: int


def patch_embeddings(model: nn.Module) -> Iterator[PatchEmbedding]:
    """Convolutions from RGB whose stride is their kernel, and linear maps of RGB patches.

    Torch's layers, and those of engines that hold such a weight and say the same of it.
    """
    for path, module in model.named_modules():
        if is_convolution(module):
            conv: Any = module
            *depth, kernel_h, kernel_w = map(int, conv.kernel_size)
            like_patches = tuple(conv.stride) == tuple(conv.kernel_size)
            if conv.in_channels == 3 and like_patches and kernel_h * kernel_w > 1:
                said = conv.padding  # a word has no numbers: "same" takes no stride, "valid" is 0
                around = (0, 0) if isinstance(said, str) else (int(said[-2]), int(said[-1]))
                size, frames = (kernel_h, kernel_w), (*depth, 1)[0]
                width = conv.out_channels
                yield PatchEmbedding(path, module, width, size, bool(depth), around, frames)
        else:
            yield from _patch_maps(path, module)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution over two or three axes, by its weight or its class."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return True
    weight = module._parameters.get("weight")
    said = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    if weight is None or weight.ndim not in (4, 5) or not all(hasattr(module, n) for n in said):
        return False
    conv: Any = module
    inputs = conv.in_channels // getattr(conv, "groups", 1)
    # A transposed convolution's weight has the inputs first.
    return tuple(weight.shape) == (conv.out_channels, inputs, *conv.kernel_size)


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, by its weight or its class; None of what is none."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return None
    return weight.shape[1], weight.shape[0]


def _patch_maps(path: str, holder: nn.Module) -> Iterator[PatchEmbedding]:
    """The linear maps of RGB patches among a module's children.

    Named so, or beside what cuts patches; of as many inputs as a patch of the size that the holder
    says has numbers. An embedding that says no size has square patches (Pix2Struct's).
    """
    unfolds = [one for one in holder.children() if isinstance(one, nn.Unfold)]
    sizes = [getattr(one, "patch_size", None) for one in (holder, getattr(holder, "config", None))]
    sizes += [one.kernel_size for one in unfolds]
    said = next((size for size in map(_side, sizes) if size is not None), None)
    embeds = "embed" in type(holder).__name__.lower()
    for name, child in holder.named_children():
        named = "patch" in f"{path.rpartition('.')[2]}.{name}"
        sizes_of_map = linear_sizes(child) if named or unfolds else None
        if sizes_of_map is None:
            continue
        side, (numbers, width) = said, sizes_of_map
        if side is None and embeds and numbers % 3 == 0:
            side = math.isqrt(numbers // 3)
        if side is not None and side > 1 and numbers == 3 * side**2:
            inside = f"{path}.{name}" if path else name
            yield PatchEmbedding(inside, child, width, (side, side), packed=True)


def _side(size: object) -> int | None:
    """The side of a square patch, as a module says it; None of another."""
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None


def block_lists(model: nn.Module) -> list[BlockList]:
    """The lists of like attention blocks in a model, whatever feeds them.

    A list inside another one's blocks is none: its members are parts of a block. Nor is one of
    whole towers, some of which pool by attention.
    """
    found: list[BlockList] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{one.path}." if one.path else "") for one in found)
        if not isinstance(module, nn.ModuleList | nn.Sequential) or inside:
            continue
        blocks = _in_a_row(module)
        if not blocks or len({type(unwrapped(block)) for block in blocks}) != 1:
            continue
        first = unwrapped(blocks[0])
        width = _width(first)
        towers = next(patch_embeddings(first), None) is not None
        if has_attention(first) and width is not None and not towers:
            found.append(BlockList(path, blocks, width))
    return found


def _in_a_row(blocks: nn.ModuleList | nn.Sequential) -> tuple[nn.Module, ...]:
    """A list's blocks; those of chunks that run theirs themselves (DINOv2's) one after the other.

    Chunks are filled up with identities, so that blocks keep their numbers.
    """
    chunks = [one for one in blocks if isinstance(one, nn.ModuleList | nn.Sequential)]
    runs_itself = type(blocks).forward is not nn.Module.forward
    if len(chunks) != len(blocks) or not all(
        type(one).forward is not nn.Module.forward for one in chunks
    ):
        return tuple(blocks)
    # Sequentials in a list that runs nothing may be branches (CrossViT's).
    if not runs_itself and any(type(one) is nn.Sequential for one in chunks):
        return tuple(blocks)
    row = tuple(block for chunk in chunks for block in chunk if not isinstance(block, nn.Identity))
    # Stages of several widths are no tower's one row of blocks.
    return row if len({_width(unwrapped(block)) for block in row}) == 1 else tuple(blocks)


def unwrapped(block: nn.Module) -> nn.Module:
    """The block inside what torch.compile or a checkpointing wrapper put around it."""
    while inside := block._modules.keys() & _WRAPPED:
        wrapped = block._modules[inside.pop()]
        assert wrapped is not None
        block = wrapped
    return block


def has_attention(block: nn.Module) -> bool:
    """Whether one of a module's children is attention, by its name or its class."""
    return any(
        "attn" in f"{name} {type(child).__name__}".lower()
        or "attention" in f"{name} {type(child).__name__}".lower()
        for name, child in block.named_children()
    )


def _width(block: nn.Module) -> int | None:
    """The width that a block's own norm works on: the only vector weights it has.

    Of blocks that hold nothing but lists of branches (timm's parallel ones): a branch's norm.
    """
    children = list(block.children())
    if all(isinstance(child, nn.ModuleList) for child in children):
        children = list(block.modules())
    for child in children:
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            return weight.shape[0]
    return None
