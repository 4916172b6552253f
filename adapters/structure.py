"""Finds vision towers in any model by structure alone.

A tower is a list of like transformer blocks of one width, fed by a patch embedding of that width;
which list a patch embedding feeds is told by nearness: the one it shares the deepest common
ancestor with. Names are looked at only to recognise attention ("attn", "attention").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class PatchEmbedding:
    """A convolution that cuts RGB pictures into patches."""

    path: str
    module: nn.Module
    width: int
    patch_size: tuple[int, int]


@dataclass(frozen=True)
class BlockList:
    """A list of like attention blocks."""

    path: str
    blocks: tuple[nn.Module, ...]
    width: int


@dataclass(frozen=True)
class Skeleton:
    """A patch embedding and the block list it feeds; ``path`` is their common ancestor's."""

    path: str
    patch_embedding: PatchEmbedding
    block_list: BlockList


@dataclass(frozen=True)
class Misfit:
    """A patch embedding that feeds no plain list of blocks, and why."""

    path: str
    reason: str


def find_skeletons(model: nn.Module) -> tuple[list[Skeleton], list[Misfit]]:
    """All towers of a model, and the patch embeddings that have none."""
    lists = list(_block_lists(model))
    skeletons: list[Skeleton] = []
    misfits: list[Misfit] = []
    for embedding in _patch_embeddings(model):
        near = _nearest(embedding.path, lists)
        fitting = [blocks for blocks in near if blocks.width == embedding.width]
        widths = sorted({blocks.width for blocks in near})
        if not near:
            misfits.append(Misfit(embedding.path, "feeds no list of attention blocks"))
        elif widths != [embedding.width]:
            misfits.append(
                Misfit(
                    embedding.path,
                    f"gives width {embedding.width}, the attention blocks near it have "
                    f"{', '.join(map(str, widths))}: a hierarchical tower, or none of its own",
                )
            )
        else:
            path = _common_path(embedding.path, fitting[0].path)
            skeletons.append(Skeleton(path, embedding, fitting[0]))
    return skeletons, misfits


def _patch_embeddings(model: nn.Module) -> Iterator[PatchEmbedding]:
    """Convolutions from RGB whose stride is their kernel."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel_h, kernel_w = (int(side) for side in module.kernel_size)
            like_patches = module.stride == module.kernel_size and kernel_h * kernel_w > 1
            if module.in_channels == 3 and like_patches:
                yield PatchEmbedding(path, module, module.out_channels, (kernel_h, kernel_w))


def _block_lists(model: nn.Module) -> Iterator[BlockList]:
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        blocks = tuple(module)
        if not blocks or len({type(block) for block in blocks}) != 1:
            continue
        width = _width(blocks[0])
        if _has_attention(blocks[0]) and width is not None:
            yield BlockList(path, blocks, width)


def _has_attention(block: nn.Module) -> bool:
    return any(
        "attn" in f"{name} {type(child).__name__}".lower()
        or "attention" in f"{name} {type(child).__name__}".lower()
        for name, child in block.named_children()
    )


def _width(block: nn.Module) -> int | None:
    """The width that a block's own norm works on: the only vector weights it has."""
    for child in block.children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            return weight.shape[0]
    return None


def _nearest(path: str, lists: list[BlockList]) -> list[BlockList]:
    """The lists that share the longest common path with ``path``."""
    shared = [len(_common_parts(path, blocks.path)) for blocks in lists]
    return [b for b, n in zip(lists, shared, strict=True) if n == max(shared)]


def _common_parts(first: str, second: str) -> list[str]:
    parts = []
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        parts.append(one)
    return parts


def _common_path(first: str, second: str) -> str:
    return ".".join(_common_parts(first, second))
