"""The error message for a model without a tower: what was looked for, what is there, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from clipdepth_plugin.adapters.modules import block_lists, has_attention, unwrapped
from clipdepth_plugin.adapters.structure import FEEDS_NOTHING, Misfit

_LOOKED_FOR = "a list of like attention blocks fed by a patch embedding (a plain ViT)"
_SETTLE = (
    "Give attach the model that holds a ViT, or name the one you mean with tower='path.to.it'; "
    "docs/extending.md says how to write an adapter"
)
_STEM = 6
"""The most convolutions of what is a tower's stem, and no tower."""

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def nothing_found(model: nn.Module, misfits: Sequence[Misfit]) -> str:
    """The message for a model in which no tower was found."""
    found = [f"{m.path or '(the host itself)'} {m.reason}" for m in misfits]
    if all(m.reason == FEEDS_NOTHING for m in misfits):
        found.append(_entrance(model))
    lists = block_lists(model)
    if lists:
        said = (f"{one.path} (depth {len(one.blocks)}, width {one.width})" for one in lists)
        found.append(f"attention blocks at {'; '.join(said)}")
    if odd := list(_lists_without_width(model, {one.path for one in lists})):
        found.append(
            f"{'; '.join(odd)} with attention, but without a norm of their own: their width can't "
            "be read, so they are taken for no blocks"
        )
    return (
        f"{type(model).__name__}: no vision tower that can be tapped. Looked for {_LOOKED_FOR}; no "
        f"patch embedding was found that feeds one. Found instead: {'. '.join(found)}. {_SETTLE}"
    )


def _entrance(model: nn.Module) -> str:
    """By what pictures enter a model, as far as that shows."""
    named = dict(model.named_modules())
    convolutions = {path: one for path, one in named.items() if isinstance(one, _Convolution)}
    colours = [path for path, one in convolutions.items() if one.in_channels == 3]
    if stems := [path for path in colours if not isinstance(convolutions[path], nn.Conv1d)]:
        return _vision(model, convolutions, stems[0])
    for path, one in named.items():
        leaf = path.rpartition(".")[2]
        sees = "patch" in path or any(word in leaf for word in ("vision", "image", "pixel"))
        if isinstance(one, nn.Linear) and sees and one.in_features % 3 == 0:
            return (
                f"{path} maps {one.in_features} numbers to {one.out_features}: patches cut before, "
                "of a size and in an order that no adapter knows"
            )
    pictures = {p: c for p, c in convolutions.items() if isinstance(c, nn.Conv2d)}
    if pictures:
        path, first = next(iter(pictures.items()))
        return (
            f"no convolution that a picture could enter by: none takes RGB, the first ({path}) "
            f"has {first.in_channels} for its in_channels"
        )
    known = (
        "a language model, a Q-Former alone, or a tower whose patch embedding is not known"
        if any(map(has_attention, named.values()))
        else "no vision model"
    )
    return f"no convolution that a picture could enter by: {known}"


def _vision(model: nn.Module, convolutions: dict[str, _Convolution], stem_path: str) -> str:
    """What kind of network most of a model's convolutions make, with the one that takes RGB."""
    tower_path = stem_path
    inside = [stem_path]
    while tower_path and 2 * len(inside) < len(convolutions):
        tower_path = tower_path.rpartition(".")[0]
        start = f"{tower_path}." if tower_path else ""
        inside = [path for path in convolutions if path.startswith(start)]
    if tower_path == stem_path:
        tower_path = stem_path.rpartition(".")[0]
    tower, stem = model.get_submodule(tower_path), convolutions[stem_path]
    size = " x ".join(map(str, stem.kernel_size))
    where, kind = tower_path or "(the host itself)", type(tower).__name__
    attends = any(map(_attends, tower.modules()))
    if len(inside) <= _STEM and not attends:
        strides = " x ".join(map(str, stem.stride))
        return (
            f"{where} is a stem ({kind}: a convolution of {size} with stride {strides} at "
            f"{stem_path}) that feeds no list of attention blocks whose width is its own"
        )
    weights = (getattr(module, "weight", None) for module in tower.modules())
    widths = sorted({len(x) for x in weights if isinstance(x, Tensor) and x.ndim == 1})
    span = f"widths {widths[0]} to {widths[-1]}" if widths else "no norms"
    said = "a convolutional tower"
    if attends:
        said = "a hierarchical tower with attention"
        if len(widths) == 1:
            said, span = (
                "a tower with attention, but no plain list of blocks",
                f"width {widths[0]}",
            )
    return f"{where} is {said} ({kind}: a convolution of {size} at {stem_path}, {span})"


def _attends(module: nn.Module) -> bool:
    """Whether a child is attention among tokens, which squeeze-and-excite (RegNet) is not."""
    return has_attention(module) and any(
        isinstance(part, nn.Linear | nn.MultiheadAttention) for part in module.modules()
    )


def _lists_without_width(model: nn.Module, known: set[str]) -> Iterator[str]:
    """Lists of like attention blocks that ``block_lists`` leaves out, as their norms are deeper."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or path in known:
            continue
        first = unwrapped(module[0])
        alike = {type(unwrapped(block)) for block in module} == {type(first)}
        inside = any(path.startswith(f"{one}.") for one in known)
        if alike and not inside and has_attention(first) and not isinstance(first, nn.ModuleList):
            yield f"{path or '(the host itself)'} has {len(module)} {type(first).__name__}"
