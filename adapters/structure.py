"""Finds vision towers in any model by structure alone.

A tower is a list of like transformer blocks fed by a patch embedding of their width: that with the
deepest common ancestor. Several side by side are paired in order, where there are as many of each.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from torch import nn

from clipdepth_plugin.adapters import modules
from clipdepth_plugin.adapters.modules import BlockList, PatchEmbedding

FEEDS_NOTHING = "feeds no list of attention blocks"


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
    lists = list(modules.block_lists(model))
    embeddings = list(modules.patch_embeddings(model))
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
            skeletons.append(Skeleton(common_path(embedding.path, fit.path), embedding, fit))
    return skeletons, misfits


def _groups(
    embeddings: list[PatchEmbedding], lists: list[BlockList]
) -> list[tuple[list[PatchEmbedding], list[BlockList]]]:
    """Patch embeddings that have the same lists equally near, and those lists; nearest first."""
    groups: dict[tuple[int, ...], tuple[list[PatchEmbedding], list[BlockList]]] = {}
    for embedding in embeddings:
        paths = [common_path(embedding.path, blocks.path) for blocks in lists]
        shared = [len(path.split(".")) if path else 0 for path in paths]
        longest = max(shared, default=0)
        near = [blocks for blocks, n in zip(lists, shared, strict=True) if n == longest]
        group, _ = groups.setdefault((-longest, *map(id, near)), ([], near))
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
                f"{', '.join(map(str, widths))}: {_widths_say(embedding, near)}"
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


def _widths_say(embedding: PatchEmbedding, near: list[BlockList]) -> str:
    """What it tells that the lists near a patch embedding are not all of its width."""
    if embedding.width not in {blocks.width for blocks in near}:
        return "none of them is its own (its patches are projected before, or go to another model)"
    # Stages: lists at paths that differ in a number alone.
    if len({re.sub(r"\d+", "", blocks.path) for blocks in near}) == 1:
        return "a hierarchical tower, which has no one width"
    return "a hierarchical tower, or others beside its own: which it feeds is not known"


def _unreadable(fit: BlockList, near: list[BlockList]) -> str | None:
    """Why a list's blocks are not a tower's levels one after the other; None where they are."""
    # Tokens stay maps (B, h, w, D) where blocks cut windows: those say their size.
    blocks = map(modules.unwrapped, fit.blocks)
    if any(isinstance(getattr(block, "window_size", None), int) for block in blocks):
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


def common_path(first: str, second: str) -> str:
    """The path of the deepest module that holds both."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def modules_around(model: nn.Module, path: str) -> list[nn.Module]:
    """The model and the modules between it and the one at ``path``; none where that is itself."""
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
