"""TowerFeatures: the one contract between the adapters and the heads.

Axes: B views, N = h * w patch tokens (row-major), D tower width, (h, w) patch grid,
H W input pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, KeyEntry, register_pytree_node

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import FeaturesError

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
_OTHER_TYPES = (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class TowerFeatures:
    """What a vision tower computed for one batch of views of one size.

    Level 0 is the tensor that enters the tower's first block, level k the raw output of
    block k (counted from 1, before any final norm): ``hidden_states[k]`` of Hugging Face.

    Attributes:
        levels: Level k -> (B, h*w, D) patch tokens, row-major, without prefix tokens.
        context: (B, D) global vector for FiLM, or None where no head asks for one.
        grid: The patch grid (h, w).
        pixels: (B, 3, H, W) as the tower took them, those that whole patches cover; or None, as
            only some heads ask for them.

    Raises:
        FeaturesError: A level, the context or the pixels are no tensors of floats, or disagree
            in shape.
    """

    levels: Mapping[int, Tensor]
    context: Tensor | None
    grid: tuple[int, int]
    pixels: Tensor | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except FeaturesError:
            raise
        except _OTHER_TYPES as error:
            raise FeaturesError(
                f"TowerFeatures: {error}; expected levels {{number: (B, h*w, D)}}, context (B, D) "
                "or None, grid (h, w), pixels (B, 3, H, W) or None, all tensors of floats"
            ) from error

    def _check(self) -> None:
        """The contract; values of other types make it raise anything.

        Without isinstance, as it runs in each pass.
        """
        if not self.levels:
            raise FeaturesError("TowerFeatures needs at least one level, got none")
        grid_h, grid_w = self.grid
        if float in (grid_h.__class__, grid_w.__class__) or not (grid_h > 0 and grid_w > 0):
            raise TypeError(f"grid is {self.grid}")
        batch: int | None = None
        for level, tokens_BND in self.levels.items():
            if level.__class__ is not int or level < 0 or tokens_BND.dtype not in _FLOATS:
                raise TypeError(f"level {level!r} is {_shown(tokens_BND)}")
            if tokens_BND.layout is not torch.strided:
                raise TypeError(f"level {level} is of layout {tokens_BND.layout}")
            if tokens_BND.ndim != 3 or tokens_BND.shape[1] != grid_h * grid_w:
                raise FeaturesError(
                    f"level {level} has shape {tuple(tokens_BND.shape)}; a grid of "
                    f"{grid_h} x {grid_w} needs (B, {grid_h * grid_w}, D): cut the prefix "
                    "tokens off and give one row for each patch"
                )
            if batch is not None and tokens_BND.shape[0] != batch:
                raise FeaturesError(
                    f"level {level} holds {tokens_BND.shape[0]} views, the levels before it {batch}"
                )
            batch = tokens_BND.shape[0]
        self._check_beside(batch)

    def _check_beside(self, batch: int | None) -> None:
        """The same of context and pixels."""
        grid_h, grid_w = self.grid
        for name, value, ndim in (("context", self.context, 2), ("pixels", self.pixels, 4)):
            if value is not None and value.dtype not in _FLOATS:
                raise TypeError(f"{name} is {_shown(value)}")
            if value is not None and (value.ndim != ndim or value.shape[0] != batch):
                raise FeaturesError(
                    f"{name} has shape {tuple(value.shape)}; expected {ndim} axes and {batch} views"
                )
        if self.pixels is not None and (
            self.pixels.shape[2] % grid_h or self.pixels.shape[3] % grid_w
        ):
            raise FeaturesError(
                f"pixels have shape {tuple(self.pixels.shape)}, which {grid_h} x {grid_w} patches "
                "do not divide: give those that whole patches cover, (B, 3, H, W)"
            )

    @property
    def batch(self) -> int:
        """Number of views B."""
        return next(iter(self.levels.values())).shape[0]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TowerFeatures:
        """The same of each tensor changed."""
        context, pixels = (None if x is None else change(x) for x in (self.context, self.pixels))
        levels = {level: change(x_BND) for level, x_BND in self.levels.items()}
        return TowerFeatures(levels, context, self.grid, pixels)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return f"{value!r:.60} ({type(value).__name__})"


def one_size(features: TowerFeatures | list[TowerFeatures]) -> TowerFeatures:
    """The features of a pass whose views are all of one size; a FeaturesError if they are not."""
    if isinstance(features, TowerFeatures):
        return features
    if len(features) == 1:
        return features[0]
    grids = ", ".join(f"{h} x {w}" for h, w in (one.grid for one in features))
    raise FeaturesError(
        f"views of several sizes (grids {grids}) where one size is needed: give pictures of one "
        "size, or take the list of features one by one"
    )


@dataclass(frozen=True)
class Views:
    """Neighbouring views of one size: how many, their patch grid, and (H, W) of what each shows.

    The latter in pixels of the tower's input.
    """

    count: int
    grid: Size
    pixel_size: Size


class Run(NamedTuple):
    """Neighbouring views of one size: their features, and (H, W) of what each shows."""

    features: TowerFeatures
    pixel_size: Size


_CHILDREN = ("levels", "context", "pixels")


def _flatten(features: TowerFeatures) -> tuple[list[Any], tuple[int, int]]:
    return [dict(features.levels), features.context, features.pixels], features.grid


def _flatten_with_keys(
    features: TowerFeatures,
) -> tuple[list[tuple[KeyEntry, Any]], tuple[int, int]]:
    values, grid = _flatten(features)
    return [(GetAttrKey(name), x) for name, x in zip(_CHILDREN, values, strict=True)], grid


def _unflatten(values: Iterable[Any], grid: tuple[int, int]) -> TowerFeatures:
    # Tracers put placeholders where tensors were, so nothing is checked here.
    features = object.__new__(TowerFeatures)
    for name, value in zip(_CHILDREN, values, strict=True):
        object.__setattr__(features, name, value)
    object.__setattr__(features, "grid", tuple(grid))
    return features


# torch.export and torch.func see through the features; the grid is part of the traced program.
register_pytree_node(
    TowerFeatures,
    _flatten,
    _unflatten,
    serialized_type_name="clipdepth_plugin.TowerFeatures",
    flatten_with_keys_fn=_flatten_with_keys,
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)
