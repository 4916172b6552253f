"""The error message for a model without a tower: what was looked for, what is there, what to do."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from clipdepth_plugin.adapters.modules import block_lists, has_attention
from clipdepth_plugin.adapters.structure import FEEDS_NOTHING, Misfit, common_path

_LOOKED_FOR = "a list of like attention blocks fed by a patch embedding (a plain ViT)"
_SETTLE = (
    "Give attach the model that holds a ViT, or name the one you mean with tower='path.to.it'; "
    "docs/extending.md says how to write an adapter"
)


def nothing_found(model: nn.Module, misfits: Sequence[Misfit]) -> str:
    """The message for a model in which no tower was found."""
    found = [f"{m.path or '(the host itself)'} {m.reason}" for m in misfits]
    modules = model.named_modules()
    convolutions = {path: one for path, one in modules if isinstance(one, nn.Conv2d)}
    stem_path = next((path for path, one in convolutions.items() if one.in_channels == 3), None)
    if stem_path is not None and all(m.reason == FEEDS_NOTHING for m in misfits):
        found.append(_vision(model, convolutions, stem_path))
    if lists := block_lists(model):
        said = (f"{one.path} (depth {len(one.blocks)}, width {one.width})" for one in lists)
        found.append(f"attention blocks at {'; '.join(said)}")
    if stem_path is None:
        known = (
            "a language model, a Q-Former alone, or a tower whose patch embedding is not known"
            if any(map(has_attention, model.modules()))
            else "no vision model"
        )
        found.append(f"no convolution that a picture could enter by: {known}")
    return (
        f"{type(model).__name__}: no vision tower that can be tapped. Looked for {_LOOKED_FOR}; no "
        f"patch embedding was found that feeds one. Found instead: {'. '.join(found)}. {_SETTLE}"
    )


def _vision(model: nn.Module, convolutions: dict[str, nn.Conv2d], stem_path: str) -> str:
    """What kind of network holds all convolutions of a model."""
    holders = [path.rpartition(".")[0] for path in convolutions]
    tower_path = functools.reduce(common_path, holders)
    tower = model.get_submodule(tower_path)
    weights = (getattr(module, "weight", None) for module in tower.modules())
    widths = sorted({len(x) for x in weights if isinstance(x, Tensor) and x.ndim == 1})
    span = f"widths {widths[0]} to {widths[-1]}" if widths else "no norms"
    kind = "a convolutional tower"
    if any(map(has_attention, tower.modules())):
        kind = "a hierarchical tower with attention"
        if len(widths) == 1:
            kind = "a tower with attention, but no plain list of blocks"
    height, width = convolutions[stem_path].kernel_size
    return (
        f"{tower_path or '(the host itself)'} is {kind} ({type(tower).__name__}: a convolution of "
        f"{height} x {width} at {stem_path}, {span})"
    )
