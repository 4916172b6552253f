"""What a tower pass leaves behind: the wanted blocks' raw outputs, until they are read.

Axes: B views, N patch tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor

from clipdepth_plugin.adapters.kept import Kept, keep, unwritten, usable
from clipdepth_plugin.adapters.layout_rules import POSITIONS, TowerCall, padded_behind
from clipdepth_plugin.adapters.layouts import TokenLayout
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import TowerFeatures, Views
from clipdepth_plugin.precision import outside_inference

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


class TowerPass:
    """One forward of the vision tower: raw outputs of the wanted blocks, until they are freed.

    Attributes:
        wanted: What is tapped.
        levels: The blocks' raw outputs that have arrived; ``LevelHook`` fills it.
        compiles: Whether torch.compile traces this pass.
        may_be_captured: Whether it is a host's own pass, which the host may record as a CUDA graph,
            and no caller's who runs the tower alone.
        keeps_pixels: Whether ``pictures`` is asked still when the tokens are freed.
        problem: Why the tokens can't be read, and no more are kept.
    """

    def __init__(self, wanted: Wanted, call: TowerCall, hosts_own: bool) -> None:
        self.wanted = wanted
        self.levels: dict[int, Kept] = {}
        self.compiles = torch.compiler.is_dynamo_compiling()
        self.may_be_captured = hosts_own and not self.compiles
        self.keeps_pixels = False
        self.problem: str | None = None
        self._call = call
        self._arguments: dict[str, Kept] = {}
        for name in call.arguments:
            if isinstance(call.arguments[name], Tensor):
                self._arguments[name] = keep(call.arguments[name], self.compiles)
        self._layout: TokenLayout | None = None
        self._pooled: Kept | None = None
        self._pixels: Kept | None = None

    @property
    def complete(self) -> bool:
        """Whether everything wanted has arrived."""
        pooled = self.wanted.context != "pooled" or self._pooled is not None
        return pooled and len(self.levels) == len(self.wanted.levels)

    @property
    def views(self) -> tuple[Views, ...]:
        """The views of this pass in order, neighbours of one size together.

        Raises:
            NoDepthError: The host did not say how they are laid out, or in a way that is not
                understood.
        """
        return self.layout.views

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
        with outside_inference():
            return self._batches()

    def _batches(self) -> list[TowerFeatures]:
        inference = self._check()
        layout, wanted = self.layout, self.wanted
        last, levels = wanted.levels[-1], {k: self.levels[k][0] for k in wanted.levels}
        tokens = layout.tokens(levels)
        contexts = self._contexts(layout, [one[last] for one in tokens])
        pixels = self._seen_pixels(layout, self._pixels) if wanted.pixels else None
        batches = [
            TowerFeatures(
                tokens[run],
                None if contexts is None else contexts[run],
                views.grid,
                None if pixels is None else pixels[run],
            )
            for run, views in enumerate(layout.views)
        ]
        return [one.mapped(usable) for one in batches] if inference else batches

    def pixel_ranges(self) -> list[Tensor]:
        """How far the pixels of each view reach, (B,) for each of ``views``: 0 is one colour.

        The range of the colour that varies most. No list where the host has written into the
        pixels since.
        """
        ranges = []
        for x_B3HW in self._seen_pixels(self.layout, unwritten(self._pixels)) or []:
            low_B3, high_B3 = x_B3HW.flatten(2).aminmax(dim=2)
            ranges.append((high_B3 - low_B3).amax(dim=1))
        return ranges

    def tapped(self) -> list[Tensor]:
        """All that arrived, as it came: levels in order, then pooled vectors and pixels if any.

        Raises:
            NoDepthError: As ``features``.
        """
        self._check()
        levels, pixels = self.levels, unwritten(self._pixels)
        tensors = [levels[level][0] for level in self.wanted.levels]
        if self._pooled is not None:
            tensors += [self._pooled[0]]
        return tensors if pixels is None else [*tensors, pixels[0]]

    def of(self, tensors: Iterable[Tensor]) -> Self:
        """The same pass of other tensors, in the order of ``tapped``."""
        rest, other = iter(tensors), copy.copy(self)
        other.levels = {level: keep(next(rest), False) for level in self.wanted.levels}
        other._pooled = keep(next(rest), False) if self.wanted.context == "pooled" else None
        pixels = next(rest, None)
        other._pixels = None if pixels is None else keep(pixels, False)
        other.problem = None
        return other

    @property
    def layout_of_shapes(self) -> TokenLayout | None:
        """The layout that each pass of such shapes has; None where other things decide, too."""
        layout = self.wanted.layouts.get(self._call[1:])
        if self._layout is None and not self._call.arguments:
            self._layout = layout = layout or self.wanted.layout_of_shapes(self._call)
        return layout if layout is self._layout else None

    def lay_out(self, layout: TokenLayout) -> None:
        """Takes the layout of a pass that was given the same, in place of what this was given."""
        self._layout = layout

    def free(self, why: str) -> None:
        """Drops the tokens; asking for them later says ``why``."""
        self.levels, self._pooled = {}, None
        if not self.keeps_pixels:
            self._pixels = None
        self.problem = why

    def take_pixels(self, pixels: Tensor) -> None:
        """Keeps the patch embedding's input."""
        self._pixels = keep(pixels, self.compiles)

    def pictures(self) -> list[Tensor]:
        """The pixels (3, H, W) of each view; none where the host has written into them since."""
        seen = self._seen_pixels(self.layout, unwritten(self._pixels)) or []
        return [x_3HW for x_B3HW in seen for x_3HW in x_B3HW]

    def take_next_pixels(self, pixels: Tensor) -> None:
        """Keeps those of one more picture of the pass, padded behind to the largest."""
        if self._pixels is not None:
            before = list(self._pixels[0])
            self._pixels = keep(padded_behind([*before, *pixels]), self.compiles)

    def take_positions(self, positions: Any) -> None:
        """Keeps the positions that the first block was given, for what proves the layout."""
        if self.problem is None:
            arguments = {POSITIONS: positions, **self._call.arguments}
            self._call = self._call._replace(arguments=arguments)

    def take_pooled(self, pooled_BD: Tensor) -> None:
        """Keeps the tower's pooled vectors."""
        if self.problem is None:
            # A copy, as it may be a view that would keep all of the tower's normed tokens.
            self._pooled = keep(pooled_BD.clone(), self.compiles)

    @property
    def layout(self) -> TokenLayout:
        """How the tokens are laid out; raises as ``views``."""
        if self._layout is None:
            call = self._call
            tracing = self.compiles and torch.compiler.is_dynamo_compiling()
            if not call.arguments and not tracing:
                self._layout = self.wanted.layout_of_shapes(call)
                return self._layout
            for name, (x, version) in self._arguments.items():
                if version is not None and x._version != version:
                    raise NoDepthError(
                        f"the tower's {name} was written into in place after the tower ran"
                    )
                call = call._replace(arguments={**call.arguments, name: x})
            self._layout = self.wanted.tower.rule.resolve(call)
            self._arguments = {}
            if call.arguments:
                self._call = call._replace(arguments={})
        return self._layout

    @property
    def tower(self) -> Tower:
        """The tower that ran."""
        return self.wanted.tower

    @property
    def patches_shape(self) -> tuple[int, ...]:
        """Shape of what the patch embedding gave."""
        return self._call.patches_shape

    def _seen_pixels(self, layout: TokenLayout, kept: Kept | None) -> list[Tensor] | None:
        """The pixels that whole patches cover; the rest, right and below, no token has seen."""
        if kept is None:
            return None
        patch_h, patch_w = self.wanted.tower.patch_size
        return [
            x_B3HW[..., : views.grid[0] * patch_h, : views.grid[1] * patch_w]
            for x_B3HW, views in zip(layout.pixels(kept[0]), layout.views, strict=True)
        ]

    def _contexts(self, layout: TokenLayout, deepest: list[Tensor]) -> list[Tensor] | None:
        """The context (B, D) of each of ``layout.views``; ``deepest``: its last level's tokens."""
        wanted = self.wanted
        if wanted.context == "mean":
            return [x_BND.mean(dim=1) for x_BND in deepest]
        if wanted.context == "cls":
            return layout.class_tokens(self.levels[wanted.last_level][0])
        if self._pooled is None:
            return None
        pooled_BD, counts = self._pooled[0], [views.count for views in layout.views]
        if tuple(pooled_BD.shape) != (sum(counts), wanted.tower.width):
            raise NoDepthError(
                f"the pooled vector came as {tuple(pooled_BD.shape)}, expected "
                f"{(sum(counts), wanted.tower.width)} = (views, width)"
            )
        return list(pooled_BD.split(counts)) if counts[1:] else [pooled_BD]

    def _check(self) -> bool:
        """Whether what arrived may be inference tensors; raises where it can't be used."""
        if self.problem is not None:
            raise NoDepthError(self.problem)
        wanted, levels, inference = self.wanted, self.levels, False
        for level in wanted.levels:
            if level not in levels:
                missing = ", ".join(f"level {k}" for k in wanted.levels if k not in levels)
                raise NoDepthError(f"taps that did not fire: {missing}. It may be that {NOT_FIRED}")
        if wanted.context == "pooled" and self._pooled is None:
            raise NoDepthError(NOT_POOLED)
        read = self._pixels if wanted.pixels else None
        for kept in (*levels.values(), self._pooled, read):
            if kept is None:
                continue
            x, version = kept
            if version is None:
                inference = True
            elif x._version != version:
                raise NoDepthError(
                    "tokens or pixels were written into in place after they were tapped; run the "
                    "host under torch.inference_mode(), where taps keep copies"
                )
        return inference
