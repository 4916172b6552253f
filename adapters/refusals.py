"""The error message for a model without a tower: what was looked for, what is there, what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from clipdepth_plugin.adapters.modules import BlockList, block_lists, has_attention
from clipdepth_plugin.adapters.structure import FEEDS_NOTHING, Misfit

_LOOKED_FOR = "a list of like attention blocks fed by a patch embedding (a plain ViT)"
_SETTLE = (
    "Give attach the model that holds a ViT, or name the one you mean with tower='path.to.it'; "
    "docs/extending.md says how to write an adapter"
)


def nothing_found(model: nn.Module, misfits: Sequence[Misfit]) -> str:
    """The message for a model in which no tower was found."""
    found = [f"{m.path or '(the host itself)'} {m.reason}" for m in misfits]
    stem_path, stem = _stem(model)
    if stem is not None and all(m.reason == FEEDS_NOTHING for m in misfits):
        found.append(_vision(model, stem_path, stem))
    if lists := list(block_lists(model)):
        found.append(f"attention blocks at {'; '.join(map(_of_list, lists))}")
    if stem is None:
        attends = any(map(has_attention, model.modules()))
        known = (
            "a language model, a Q-Former alone, or a tower whose patch embedding is not known"
            if attends
            else "no vision model"
        )
        found.append(f"no convolution that a picture could enter by: {known}")
    name = type(model).__name__
    return (
        f"{name}: no vision tower that can be tapped. Looked for {_LOOKED_FOR}; no patch embedding "
        f"was found that feeds one. Found instead: {'. '.join(found)}. {_SETTLE}"
    )


def _of_list(blocks: BlockList) -> str:
    return f"{blocks.path} (depth {len(blocks.blocks)}, width {blocks.width})"


def _stem(model: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """The first convolution from RGB."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return path, module
    return "", None


def _vision(model: nn.Module, stem_path: str, stem: nn.Conv2d) -> str:
    """What kind of network lies behind the first convolution from RGB."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    tower_path = _common(paths)
    tower = model.get_submodule(tower_path)
    widths = sorted(_norm_widths(tower))
    span = f"widths {widths[0]} to {widths[-1]}" if widths else "no norms"
    attends = any(map(has_attention, tower.modules()))
    kind = "a hierarchical tower with attention" if attends else "a convolutional tower"
    if attends and len(widths) == 1:
        kind = "a tower with attention, but no plain list of blocks"
    height, width = stem.kernel_size[0], stem.kernel_size[1]
    return (
        f"{tower_path or '(the host itself)'} is {kind} ({type(tower).__name__}: a convolution of "
        f"{height} x {width} at {stem_path}, {span})"
    )


def _common(paths: Sequence[str]) -> str:
    """The module that holds all of them: the common path, without the last part of a lone one."""
    parts = [path.split(".")[:-1] for path in paths]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _norm_widths(tower: nn.Module) -> set[int]:
    return {
        weight.shape[0]
        for module in tower.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim == 1
    }
