"""The error message for a model without a tower: what was looked for, what is there, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from clipdepth_plugin.adapters.modules import BlockList, block_lists, has_attention, unwrapped
from clipdepth_plugin.adapters.structure import (
    FEEDS_NOTHING,
    Misfit,
    common_path,
    modules_around,
)
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.adapters.unreadable import words_of

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
    found = [f"{_named(m.path)} {m.reason}" for m in misfits]
    lists = block_lists(model)
    odd = _lists_without_width(model, {one.path for one in lists})
    if all(m.reason == FEEDS_NOTHING for m in misfits):
        found += _entrance(model, lists, misfits, odd)
    if lists:
        said = (f"{one.path} (depth {len(one.blocks)}, width {one.width})" for one in lists)
        found.append(f"attention blocks at {'; '.join(said)}")
    if odd:
        found.append(
            f"{'; '.join(f'{_named(path)} has {said}' for path, said in odd.items())} with "
            "attention, but without a norm of their own: their width can't be read, so they are "
            "taken for no blocks"
        )
    return (
        f"{type(model).__name__}: no vision tower that can be tapped. Looked for {_LOOKED_FOR}; no "
        f"patch embedding was found that feeds one. Found instead: {'. '.join(found)}. {_SETTLE}"
    )


def _named(path: str) -> str:
    return path or "(the host itself)"


def _entrance(
    model: nn.Module,
    lists: Sequence[BlockList],
    misfits: Sequence[Misfit],
    odd: Mapping[str, str],
) -> Iterator[str]:
    """By what pictures enter a model, as far as that shows, and what becomes of them."""
    named = dict(model.named_modules())
    convolutions = {path: one for path, one in named.items() if isinstance(one, _Convolution)}
    colours = [path for path, one in convolutions.items() if one.in_channels == 3]
    stems = [path for path in colours if not isinstance(convolutions[path], nn.Conv1d)]
    if stems and (tower := _tower(model, convolutions, stems[0], lists)):
        yield tower
    elif misfits:
        yield from _shared_with_words(model, misfits[0].path, odd)
    else:
        if stems:
            yield _stem(stems[0], convolutions[stems[0]], named)
        else:
            yield _no_convolution(model, named)
        for one in lists:
            yield from _latents(model, one)


def _shared_with_words(model: nn.Module, path: str, odd: Mapping[str, str]) -> Iterator[str]:
    """Whether the blocks beside a patch embedding read words, too."""
    around = max((common_path(path, one) for one in odd), key=len, default="")
    inside = path.removeprefix(f"{around}.").partition(".")[0]
    beside = model.get_submodule(f"{around}.{inside}".lstrip("."))
    # What holds blocks of other kinds (a mixer's) has its patches for itself.
    lists = [one for one in beside.modules() if isinstance(one, nn.ModuleList | nn.Sequential)]
    alone = not any(len(one) > 1 and len({type(part) for part in one}) == 1 for one in lists)
    if odd and alone and (words := words_of(model.get_submodule(around))):
        yield f"{_named(around)} reads words, too ({words}): these share a row with the patches"


def _no_convolution(model: nn.Module, named: dict[str, nn.Module]) -> str:
    parts = ("patch",) if words_of(model) else ("patch", "embed")
    for path, one in named.items():
        leaf = path.rpartition(".")[2]
        sees = any(word in path for word in parts) or any(
            word in leaf for word in ("vision", "image", "pixel")
        )
        if isinstance(one, nn.Linear) and sees and one.in_features % 3 == 0:
            return (
                f"{path} maps {one.in_features} numbers to {one.out_features}: patches cut before, "
                "of a size and in an order that no adapter knows"
            )
    for path, one in named.items():
        if isinstance(one, nn.Conv2d):
            return (
                f"no convolution that a picture could enter by: none takes RGB, the first ({path}) "
                f"has {one.in_channels} for its in_channels"
            )
    return f"no convolution that a picture could enter by: {_without_entrance(model, named)}"


def _without_entrance(model: nn.Module, named: dict[str, nn.Module]) -> str:
    """What a model is without convolutions and linear maps of patches, by what it takes."""
    takes = parameters_of(model)
    if not any(map(has_attention, named.values())):
        return "no vision model"
    if pictures := [name for name in takes if "pixel" in name]:
        return (
            f"how it makes tokens of {pictures[0]} is not known (no linear map of patches, either)"
        )
    if words := words_of(model):
        return f"a language model, which takes words ({words}) and no pictures"
    said = f" that takes {takes[0]}" if takes else ""
    return f"a part of a model{said} (a Q-Former, an encoder or a resampler alone)"


def _latents(model: nn.Module, blocks: BlockList) -> Iterator[str]:
    for path, parameter in model.named_parameters():
        if path.rpartition(".")[2] == "latents" and parameter.shape[-1:] == (blocks.width,):
            yield (
                f"{blocks.path} works on learnt latents ({path}), which attend to what enters: "
                "none of them is a patch"
            )


def _stem(path: str, stem: _Convolution, named: dict[str, nn.Module]) -> str:
    """The first convolution from RGB, where few follow: none that cuts patches."""
    around = path.rpartition(".")[0]
    size, strides = (" x ".join(map(str, x)) for x in (stem.kernel_size, stem.stride))
    pairs = [*zip(stem.kernel_size, stem.stride, strict=True)]
    if any(kernel > stride for kernel, stride in pairs):
        why = "its windows overlap"
    else:
        why = "it maps single pixels" if max(stem.kernel_size) == 1 else "it leaves gaps"
    return (
        f"{_named(around)} is a stem ({type(named[around]).__name__}: a convolution of {size} with "
        f"stride {strides} at {_named(path)}), and no patch embedding: {why}"
    )


def _tower(
    model: nn.Module,
    convolutions: dict[str, _Convolution],
    stem_path: str,
    lists: Sequence[BlockList],
) -> str | None:
    """What kind of network most convolutions make with one that takes RGB; None where few do.

    Counted in the innermost library model around it: detectors have convolutions behind a tower.
    """
    inside = _within(convolutions, _library_model(model, stem_path))
    whole, tower_path = len(inside), stem_path
    inside = [stem_path]
    while tower_path and 2 * len(inside) < whole:
        tower_path = tower_path.rpartition(".")[0]
        inside = _within(convolutions, tower_path)
    if len(inside) <= _STEM:
        return None
    tower, stem = model.get_submodule(tower_path), convolutions[stem_path]
    size = " x ".join(map(str, stem.kernel_size))
    weights = (getattr(module, "weight", None) for module in tower.modules())
    widths = sorted({len(x) for x in weights if isinstance(x, Tensor) and x.ndim == 1})
    ends = " to ".join(map(str, dict.fromkeys((widths[0], widths[-1])))) if widths else ""
    span = f"width{'s' * (len(widths) > 1)} {ends}" if widths else "no norms"
    said = "a convolutional tower"
    blocks = _within((one.path for one in lists), tower_path)
    if blocks or any(map(_attends, tower.modules())):
        said = "a hierarchical tower with attention"
        # Of stages, the first are narrower; a stem's own norms may be.
        if {one.width for one in lists if one.path in blocks} == {widths[-1]}:
            said = "a tower with attention, whose blocks no patch embedding feeds"
    about = f"{type(tower).__name__}: a convolution of {size} at {stem_path}, {span}"
    return f"{_named(tower_path)} is {said} ({about})"


def _within(paths: Iterable[str], path: str) -> list[str]:
    start = f"{path}." if path else ""
    return [one for one in paths if one.startswith(start)]


def _library_model(model: nn.Module, path: str) -> str:
    """The path of the innermost model of transformers around a module; "" where there is none."""
    parts = path.split(".")
    whole = [
        ".".join(parts[:depth])
        for depth, one in enumerate(modules_around(model, path))
        if hasattr(one, "base_model_prefix")
    ]
    return whole[-1] if whole else ""


def _attends(module: nn.Module) -> bool:
    """Whether a child is attention among tokens, which squeeze-and-excite (RegNet) is not."""
    return has_attention(module) and any(
        isinstance(part, nn.Linear | nn.MultiheadAttention) for part in module.modules()
    )


def _lists_without_width(model: nn.Module, known: set[str]) -> dict[str, str]:
    """Lists of like attention blocks that ``block_lists`` leaves out, as their norms are deeper.

    Attention may be deeper, too (T5's and UDOP's): in blocks, no stages of other lists.
    """
    found: dict[str, str] = {}
    for deep in (False, True):
        for path, module in model.named_modules():
            if not isinstance(module, nn.ModuleList) or len(module) < 2:
                continue
            first = unwrapped(module[0])
            alike = {type(unwrapped(block)) for block in module} == {type(first)}
            others = (*known, *found)
            apart = not any(f"{path}.".startswith(f"{one}.") for one in others) and not (
                deep and any(one.startswith(f"{path}.") for one in others)
            )
            attends = any(map(has_attention, first.modules() if deep else [first]))
            if alike and apart and attends and not isinstance(first, nn.ModuleList):
                found[path] = f"{len(module)} {type(first).__name__}"
    return found
