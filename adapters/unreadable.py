"""Why a tower that no family knows is none of one row of patches a picture, read off its modules.

What is found here is refused when a plug-in attaches. Without it a tower would look plain until its
first pass is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn

from clipdepth_plugin.adapters.modules import BlockList, PatchEmbedding, unwrapped
from clipdepth_plugin.adapters.plain import PACKING
from clipdepth_plugin.adapters.traits import (
    PREFIX_TOKENS,
    parameters_of,
    required_by,
)

_WORDS = ("input_ids", "inputs_embeds")
_NO_ROW = ("mask", "pool", "head", "type")
"""In names of tokens that stand for others, join after the blocks, or are added to all."""


def why_unreadable(
    tower: nn.Module, embedding: PatchEmbedding, block_list: BlockList
) -> str | None:
    """Why its tokens are no plain row, said of its patch embedding; None where they are."""
    reasons = itertools.chain(
        _stem(embedding), _arguments(tower), _blocks(block_list), _own_tokens(tower, block_list)
    )
    return next(reasons, None)


def words_of(model: nn.Module) -> str | None:
    """The argument by which a model's forward takes words; None of one that takes none."""
    return next((name for name in parameters_of(model) if name in _WORDS), None)


def _stem(embedding: PatchEmbedding) -> Iterator[str]:
    if embedding.packed:
        kind = type(embedding.module).__name__
        yield (
            f"({kind}) maps clips of a video, or patches that are cut before, in an order that no "
            "adapter knows"
        )
    if embedding.padding != (0, 0):
        yield (
            f"pads its pictures by {embedding.padding} (rows, columns), so that a patch is not "
            "where its number says"
        )


def _arguments(tower: nn.Module) -> Iterator[str]:
    if any(hasattr(part, "random_masking") for part in tower.modules()):
        yield "feeds a masked autoencoder, which shuffles its patches"
    parameters, required = parameters_of(tower), required_by(tower)
    for name in parameters:
        if name in PACKING:
            yield (
                f"feeds a tower that {'needs' if name in required else 'takes'} {name}, which says "
                "how its tokens are packed, in an order that no adapter knows"
            )
    if words := words_of(tower):
        yield f"feeds blocks that read words, too ({words}): these share a row with the patches"
    pictures = [name for name in required if "pixel" in name]
    if len(pictures) > 1:
        yield (
            f"runs once for each of {', '.join(pictures)}, and their tokens share the blocks: "
            "which are which is not known"
        )


def _blocks(block_list: BlockList) -> Iterator[str]:
    first, path = unwrapped(block_list.blocks[0]), block_list.path
    for name, _ in first.named_children():
        if "temporal" in name:
            yield (
                f"feeds blocks that attend over time ({path}.0.{name}): how the frames of a clip "
                "share a row is not known"
            )
    windows = getattr(first, "num_windows", 1)
    if isinstance(windows, int) and windows > 1:
        yield (
            f"feeds blocks that attend within windows of a picture ({path}, num_windows "
            f"{windows}): its tokens lie window after window, in an order that no adapter knows"
        )


def _own_tokens(tower: nn.Module, block_list: BlockList) -> Iterator[str]:
    """Learnt tokens that are none of the known prefix: queries, groups, detection tokens."""
    if tokens := list(_tokens(tower, block_list)):
        yield (
            f"feeds a tower with tokens of its own ({', '.join(tokens[:3])}): where they join the "
            "patches is not known"
        )


def _tokens(tower: nn.Module, block_list: BlockList) -> Iterator[str]:
    """Their paths."""
    inside = {id(module) for block in block_list.blocks for module in block.modules()}
    for path, module in tower.named_modules():
        if id(module) in inside:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            learnt = isinstance(module, nn.Embedding) or name not in ("weight", "bias")
            full = f"{path}.{name}".lstrip(".")
            said = full.removesuffix(".weight").rpartition(".")[2].lower()
            named = "token" in said or said in ("query", "queries", "query_embed")
            if (
                learnt
                and named
                and parameter.shape[-1:] == (block_list.width,)
                and said not in PREFIX_TOKENS
                and not any(part in full.lower() for part in _NO_ROW)
            ):
                yield full
