"""What is tapped of a tower for a head, and how the tokens of such passes are laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipdepth_plugin.adapters.layout_rules import TowerCall
from clipdepth_plugin.adapters.layouts import TokenLayout
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.config import ContextKind, HeadConfig

LAYOUTS = 64
"""Layouts that are kept, one for each shape of pass."""


@dataclass(frozen=True)
class Wanted:
    """What is tapped of a tower: ascending levels, the context (None: no head asks), pixels.

    ``layouts``: those of passes whose shapes alone say how their tokens lie, by these shapes.
    """

    tower: Tower
    levels: tuple[int, ...]
    context: ContextKind | None = None
    pixels: bool = False
    layouts: dict[tuple[Any, ...], TokenLayout] = field(
        default_factory=dict, compare=False, repr=False
    )

    def layout_of_shapes(self, call: TowerCall) -> TokenLayout:
        """The layout of a pass that was given pictures alone: decided once for their shapes."""
        layout = self.layouts.get(call[1:])
        if layout is None:
            layout = self.tower.rule.resolve(call)
            if len(self.layouts) >= LAYOUTS:
                self.layouts.clear()
            self.layouts[call[1:]] = layout
        return layout

    @property
    def last_level(self) -> int:
        """The deepest tapped level."""
        return self.levels[-1]


def wanted_by(head: HeadConfig, tower: Tower, *, pixels: bool) -> Wanted:
    """What a head reads of a tower."""
    return Wanted(tower, head.levels, head.context if head.film else None, pixels)
