"""Finds vision towers in any model by structure alone.

A tower is a list of like transformer blocks of one width, fed by a patch embedding of that width;
which list a patch embedding feeds is told by nearness: the one it shares the deepest common
ancestor with. Several side by side are paired in their order where there are as many of each.
Names are looked at only to recognise attention ("attn", "attention") and a linear map of patches
("patch").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

FEEDS_NOTHING = "feeds no list of attention blocks"


_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module"}
"""Where torch.compile(block) and torch's checkpoint_wrapper(block) keep the block."""


@dataclass(frozen=True)
class PatchEmbedding:
    """What cuts RGB pictures into patches, or maps patches that a host has cut.

    Attributes:
        path: Module path.
        module: A convolution of pictures; one of videos or a linear map, where patches come cut.
        width: D.
        patch_size: (height, width) of a patch in pixels.
        packed: Whether it maps patches that are cut already, so that it says nothing of their
            order.
        padding: (above and below, left and right) pixels that it puts around a picture.
    """

    path: str
    module: nn.Module
    width: int
    patch_size: tuple[int, int]
    packed: bool = False
    padding: tuple[int, int] = (0, 0)


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
    lists = list(block_lists(model))
    embeddings = list(_patch_embeddings(model))
    fed: dict[str, BlockList | str] = {}
    taken: set[str] = set()
    # The nearest pairs first, so that no embedding takes the list of one further inside.
    for group, near in _groups(embeddings, lists):
        free = [blocks for blocks in near if blocks.path not in taken]
        fed.update(_pair(group, free, any_near=bool(near)))
        taken.update(fit.path for e in group if isinstance(fit := fed[e.path], BlockList))
    skeletons: list[Skeleton] = []
    misfits: list[Misfit] = []
    for embedding in embeddings:
        fit = fed[embedding.path]
        if isinstance(fit, str):
            misfits.append(Misfit(embedding.path, fit))
        else:
            skeletons.append(Skeleton(_common_path(embedding.path, fit.path), embedding, fit))
    return skeletons, misfits


def _groups(
    embeddings: list[PatchEmbedding], lists: list[BlockList]
) -> list[tuple[list[PatchEmbedding], list[BlockList]]]:
    """Patch embeddings that have the same lists equally near, and those lists; nearest first."""
    groups: dict[tuple[int, ...], tuple[list[PatchEmbedding], list[BlockList]]] = {}
    for embedding in embeddings:
        shared, near = _nearest(embedding.path, lists)
        group, _ = groups.setdefault((-shared, *map(id, near)), ([], near))
        group.append(embedding)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _pair(
    group: list[PatchEmbedding], near: list[BlockList], *, any_near: bool
) -> dict[str, BlockList | str]:
    """The list that each embedding of a group feeds, or the reason why there is none."""
    fed: dict[str, BlockList | str] = {}
    widths = sorted({blocks.width for blocks in near})
    for embedding in group:
        if not near:
            fed[embedding.path] = (
                "is beside attention blocks that a nearer patch embedding feeds"
                if any_near
                else FEEDS_NOTHING
            )
        elif embedding.width not in widths or not {*widths} <= {e.width for e in group}:
            fed[embedding.path] = (
                f"gives width {embedding.width}, the attention blocks near it have "
                f"{', '.join(map(str, widths))}: a hierarchical tower, or none of its own"
            )
    for width in widths:
        alike = [e for e in group if e.width == width and e.path not in fed]
        fitting = [blocks for blocks in near if blocks.width == width]
        if len(alike) > 1 and len(alike) != len(fitting):
            paths = ", ".join(blocks.path for blocks in fitting)
            reason = (
                f"is one of {len(alike)} patch embeddings beside {len(fitting)} lists of "
                f"attention blocks of its width ({paths}): which feeds which is ambiguous"
            )
            fed.update(dict.fromkeys((e.path for e in alike), reason))
        else:
            # Several lists behind one embedding (Mllama's) follow each other: the first is its.
            fed.update((e.path, b) for e, b in zip(alike, fitting, strict=False))
    for path, fit in fed.items():
        if isinstance(fit, BlockList) and (why := _unreadable(fit, near)):
            fed[path] = why
    return fed


def _unreadable(fit: BlockList, near: list[BlockList]) -> str | None:
    """Why a list's blocks are not a tower's levels one after the other; None where they are."""
    if _runs_on_maps(fit):
        return (
            f"feeds blocks that attend within windows of maps ({fit.path}, as SAM's), not on rows "
            "of tokens"
        )
    around, _, number = fit.path.rpartition(".")
    beside = [one.path for one in near if one.path.rpartition(".")[0] == around]
    if number.isdigit() and len(beside) > 1:
        return (
            f"feeds one of the lists {', '.join(beside)}: whether these make one tower, and in "
            "which order, is not known"
        )
    return None


def _runs_on_maps(block_list: BlockList) -> bool:
    """Whether tokens stay maps (B, h, w, D): blocks that cut windows say their size."""
    blocks = map(unwrapped, block_list.blocks)
    return any(isinstance(getattr(block, "window_size", None), int) for block in blocks)


def _patch_embeddings(model: nn.Module) -> Iterator[PatchEmbedding]:
    """Convolutions from RGB whose stride is their kernel, and linear maps of RGB patches."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            kernel_h, kernel_w = size = (int(module.kernel_size[-2]), int(module.kernel_size[-1]))
            like_patches = module.stride == module.kernel_size and kernel_h * kernel_w > 1
            if module.in_channels == 3 and like_patches:
                packed = isinstance(module, nn.Conv3d)
                around = _padding(module)
                yield PatchEmbedding(path, module, module.out_channels, size, packed, around)
        elif isinstance(patch := getattr(module, "patch_size", None), int):
            # Only the module that holds it tells such a map from any other.
            for name, child in module.named_children():
                maps_patches = isinstance(child, nn.Linear) and child.in_features == 3 * patch**2
                if maps_patches and "patch" in name:
                    yield PatchEmbedding(
                        f"{path}.{name}" if path else name,
                        child,
                        int(cast("nn.Linear", child).out_features),
                        (patch, patch),
                        packed=True,
                    )


def _padding(convolution: nn.Conv2d | nn.Conv3d) -> tuple[int, int]:
    said = convolution.padding
    if isinstance(said, str):  # torch takes no stride with "same"; "valid" is none
        return (0, 0)
    return int(said[-2]), int(said[-1])


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
        towers = next(_patch_embeddings(first), None) is not None
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


def _nearest(path: str, lists: list[BlockList]) -> tuple[int, list[BlockList]]:
    """The lists that share the longest common path with ``path``, and how long that is."""
    shared = [len(_common_parts(path, blocks.path)) for blocks in lists]
    longest = max(shared, default=0)
    return longest, [b for b, n in zip(lists, shared, strict=True) if n == longest]


def _common_parts(first: str, second: str) -> list[str]:
    parts = []
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        parts.append(one)
    return parts


def _common_path(first: str, second: str) -> str:
    return ".".join(_common_parts(first, second))


def modules_around(model: nn.Module, path: str) -> list[nn.Module]:
    """The model and the modules between it and the one at ``path``; none where that is itself."""
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
