"""What a tower pass leaves behind: the wanted blocks' raw outputs, until they are read.

Axes: B views, N patch tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layouts import POSITIONS, LayoutRule, TokenLayout, TowerCall
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.config import ContextKind
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import TowerFeatures, Views

NOT_FIRED = (
    "the host was compiled, graphed or replayed before attach, an error ended its forward, or it "
    "leaves those blocks out"
)

NOT_POOLED = (
    "the tower's pooled vector, which is the head's context, was not made: the host takes tokens "
    "and never pools them (timm's forward_features), or an error ended its forward before. Such a "
    "host needs a head with another context, 'mean' or, where the tower has a class token, 'cls': "
    "DepthHead.for_host(host, context='mean'), in training head.options.context"
)


@dataclass(frozen=True)
class Wanted:
    """What is tapped, and how its tokens are laid out.

    Attributes:
        levels: The levels, ascending.
        context: Context kind, or None where no head asks.
        pixels: Whether the tower's input pixels are kept.
        width: D.
        patch_size: (height, width) of a patch in pixels.
        rule: Makes the layout of each pass.
    """

    levels: tuple[int, ...]
    context: ContextKind | None
    pixels: bool
    width: int
    patch_size: tuple[int, int]
    rule: LayoutRule

    @classmethod
    def of(
        cls,
        tower: Tower,
        levels: tuple[int, ...],
        context: ContextKind | None,
        *,
        pixels: bool = False,
    ) -> Wanted:
        """What is wanted of a tower."""
        return cls(
            levels=levels,
            context=context,
            pixels=pixels,
            width=tower.width,
            patch_size=tower.patch_size,
            rule=tower.rule,
        )

    @property
    def last_level(self) -> int:
        """The deepest tapped level."""
        return self.levels[-1]


@dataclass
class _Kept:
    """A tensor as tapped, and its version then: hosts may write into it later.

    Attributes:
        tensor: As tapped, or a copy.
        version: None where it has none that writes would change.
        copied: Whether it is a copy, which nobody else writes into.
    """

    tensor: Tensor
    version: int | None
    copied: bool = False

    @classmethod
    def of(cls, x: Tensor) -> _Kept:
        """Keeps a reference; a copy where writes could not be noticed (inference mode)."""
        if torch.compiler.is_compiling():
            return cls(x.detach(), None)
        if x.is_inference():
            return cls(x.clone(), None, copied=True)
        return cls(x.detach(), x._version)

    def written_since(self) -> bool:
        """Whether the host has changed the tensor in place."""
        return self.version is not None and self.tensor._version != self.version


class TowerPass:
    """One forward of the vision tower: raw outputs of the wanted blocks, until they are freed.

    Attributes:
        hosts_own: Whether it is a host's own pass, and no caller's who runs the tower alone.
    """

    def __init__(self, wanted: Wanted, call: TowerCall, hosts_own: bool) -> None:
        self.hosts_own = hosts_own
        self._wanted = wanted
        self._call = _keep(call)
        self._layout: TokenLayout | None = None
        self._levels: dict[int, _Kept] = {}
        self._pooled: _Kept | None = None
        self._pixels: _Kept | None = None
        self._problem: str | None = None

    @property
    def views(self) -> tuple[Views, ...]:
        """The views of this pass in order, neighbours of one size together.

        Raises:
            NoDepthError: The host did not say how they are laid out, or in a way that is not
                understood.
        """
        return self._laid_out().views

    @property
    def count(self) -> int:
        """Number of views; raises as ``views``."""
        return sum(views.count for views in self.views)

    @property
    def features(self) -> TowerFeatures | list[TowerFeatures]:
        """The tokens of this pass, without autograd history.

        Views of several sizes make a list, each of it the neighbours of one size, in the views'
        order.

        Raises:
            NoDepthError: A tap did not fire, the tokens are not laid out as expected, the host
                wrote into them, or they have been freed.
        """
        batches = self.batches
        return batches[0] if len(batches) == 1 else batches

    @property
    def batches(self) -> list[TowerFeatures]:
        """As ``features``: always a list, one for each of ``views``."""
        self._check()
        with torch.inference_mode(False):
            layout = self._laid_out()
            tokens = self._tokens(layout, self._wanted.levels)
            contexts = self._contexts(layout, tokens[self._wanted.last_level])
            pixels = self._seen_pixels(layout)
            return [
                TowerFeatures(
                    {level: _usable(tokens[level][run]) for level in self._wanted.levels},
                    None if contexts is None else _usable(contexts[run]),
                    views.grid,
                    None if pixels is None else _usable(pixels[run]),
                )
                for run, views in enumerate(layout.views)
            ]

    @property
    def complete(self) -> bool:
        """Whether everything wanted has arrived."""
        pooled_due = self._wanted.context == "pooled" and self._pooled is None
        return not pooled_due and all(k in self._levels for k in self._wanted.levels)

    def free(self, why: str) -> None:
        """Drops the tokens; asking for them later says ``why``."""
        self._levels, self._pooled, self._pixels = {}, None, None
        self._problem = why

    def take_pixels(self, pixels: Tensor) -> None:
        """Keeps the patch embedding's input."""
        self._pixels = _Kept.of(pixels)

    def take_positions(self, positions: Any) -> None:
        """Keeps the positions that the first block was given, for what proves the layout."""
        if self._problem is None:
            arguments = {POSITIONS: positions, **self._call.arguments}
            self._call = replace(self._call, arguments=arguments)

    def take_level(self, level: int, x: Tensor) -> None:
        """Keeps a block's raw output."""
        if self._problem is not None or level in self._levels:
            return  # gradient checkpointing runs blocks again, in the backward of any pass
        if x.shape[-1] != self._wanted.width:
            self._problem = (
                f"level {level} came as {tuple(x.shape)}, expected a width of {self._wanted.width}"
            )
            return
        self._levels[level] = _Kept.of(x)

    def take_pooled(self, pooled_BD: Tensor) -> None:
        """Keeps the tower's pooled vectors."""
        if self._problem is None:
            # A copy, as it may be a view that would keep all of the tower's normed tokens.
            self._pooled = _Kept.of(pooled_BD.clone())

    def _arrivals(self) -> list[_Kept]:
        kept = (*self._levels.values(), self._pooled, self._pixels)
        return [one for one in kept if one is not None]

    def _tokens(self, layout: TokenLayout, levels: tuple[int, ...]) -> dict[int, list[Tensor]]:
        """The patch tokens (B, N, D) of each of ``layout.views``, by level."""
        return {
            level: layout.tokens(self._levels[level].tensor, f"level {level}") for level in levels
        }

    def _laid_out(self) -> TokenLayout:
        if self._layout is None:
            arguments = {}
            for name, value in self._call.arguments.items():
                if isinstance(value, _Kept) and value.written_since():
                    raise NoDepthError(
                        f"the tower's {name} was written into in place after the tower ran"
                    )
                arguments[name] = value.tensor if isinstance(value, _Kept) else value
            self._layout = self._wanted.rule.resolve(replace(self._call, arguments=arguments))
            self._call = replace(self._call, arguments={})
        return self._layout

    def _seen_pixels(self, layout: TokenLayout) -> list[Tensor] | None:
        """The pixels that whole patches cover; the rest, right and below, no token has seen."""
        if self._pixels is None:
            return None
        patch_h, patch_w = self._wanted.patch_size
        pixels = zip(layout.pixels(self._pixels.tensor), layout.views, strict=True)
        return [
            x_B3HW[..., : views.grid[0] * patch_h, : views.grid[1] * patch_w]
            for x_B3HW, views in pixels
        ]

    def _contexts(self, layout: TokenLayout, deepest: list[Tensor]) -> list[Tensor] | None:
        """The context (B, D) of each of ``layout.views``; ``deepest``: its last level's tokens."""
        wanted = self._wanted
        if wanted.context == "mean":
            return [x_BND.mean(dim=1) for x_BND in deepest]
        if wanted.context == "cls":
            raw = self._levels[wanted.last_level].tensor
            return layout.class_tokens(raw, f"level {wanted.last_level}")
        if self._pooled is None:
            return None
        pooled_BD, counts = self._pooled.tensor, [views.count for views in layout.views]
        if tuple(pooled_BD.shape) != (sum(counts), wanted.width):
            raise NoDepthError(
                f"the pooled vector came as {tuple(pooled_BD.shape)}, expected "
                f"{(sum(counts), wanted.width)} = (views, width)"
            )
        return list(pooled_BD.split(counts))

    def _check(self) -> None:
        if self._problem is not None:
            raise NoDepthError(self._problem)
        if not self.complete:
            missing = [f"level {k}" for k in self._wanted.levels if k not in self._levels]
            if not missing:
                raise NoDepthError(NOT_POOLED)
            raise NoDepthError(
                f"taps that did not fire: {', '.join(missing)}. It may be that {NOT_FIRED}"
            )
        if any(one.written_since() for one in self._arrivals()):
            raise NoDepthError(
                "tokens or pixels were written into in place after they were tapped; run the host "
                "under torch.inference_mode(), where taps keep copies"
            )


def _keep(call: TowerCall) -> TowerCall:
    """The call with its tensors kept as outputs are."""
    arguments = {
        name: _Kept.of(value) if isinstance(value, Tensor) else value
        for name, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)


def _usable(x: Tensor) -> Tensor:
    """The tensor as one that autograd may save: inference tensors are cloned out."""
    return x.clone() if x.is_inference() else x
