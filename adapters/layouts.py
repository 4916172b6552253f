"""The layout of one pass: how raw block outputs become each view's row-major tokens.

Axes: B views, N = h * w patch tokens, T those and prefix tokens, D width, R rows of a raw output
with its axes before D flattened, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import Views


class PlainLayout:
    """One row of tokens for each view: prefix tokens, then all patches of one grid.

    Attributes:
        views: In order, neighbours of one size together. The methods' lists go with them.
        key: Equal for layouts that are.
    """

    def __init__(
        self, views: Views, num_prefix_tokens: int = 0, *, sequence_first: bool = False
    ) -> None:
        self.views: tuple[Views, ...] = (views,)
        self._prefix = num_prefix_tokens
        self._sequence_first = sequence_first
        self.key = (views.count, views.grid, views.pixel_size, num_prefix_tokens, sequence_first)

    def of_batch(self, count: int) -> PlainLayout:
        """The same of another number of views."""
        views = replace(self.views[0], count=count)
        return PlainLayout(views, self._prefix, sequence_first=self._sequence_first)

    @property
    def rows(self) -> list[Tensor]:
        """The rows (B, N) of the patch tokens in a raw output, views before tokens."""
        (views,) = self.views
        patches_N = torch.arange(views.grid[0] * views.grid[1]) + self._prefix
        return [patches_N + torch.arange(views.count)[:, None] * self.row_length]

    @property
    def row_length(self) -> int:
        """T, after which the next picture's tokens begin; all of them where they are packed."""
        (views,) = self.views
        return self._prefix + views.grid[0] * views.grid[1]

    def tokens(self, levels: Mapping[int, Tensor]) -> list[dict[int, Tensor]]:
        """The patch tokens (B, N, D) in blocks' raw outputs, by level."""
        (views,) = self.views
        grid_h, grid_w = views.grid
        expected, tokens = (views.count, self._prefix + grid_h * grid_w), {}
        for level in levels:
            x = levels[level]
            x_BTD = x.transpose(0, 1) if self._sequence_first and x.ndim > 1 else x
            if x_BTD.ndim != 3 or x_BTD.shape[:2] != expected:
                raise NoDepthError(
                    f"level {level} came as {tuple(x_BTD.shape)}, expected ({views.count} views, "
                    f"{self._prefix} prefix tokens + {grid_h} x {grid_w} patches, width): this "
                    "tower drops, merges or packs tokens in a way that its adapter does not know"
                )
            tokens[level] = x_BTD[:, self._prefix :]
        return [tokens]

    def class_tokens(self, x: Tensor) -> list[Tensor]:
        """The raw class tokens (B, D) in an output that ``tokens`` took."""
        return [x[0] if self._sequence_first else x[:, 0]]

    def pixels(self, pixels: Tensor) -> list[Tensor]:
        """The views' pixels (B, 3, H, W) in the patch embedding's input."""
        return [pixels]


@dataclass(frozen=True)
class ViewTokens:
    """Where one view lies in a raw output.

    Attributes:
        pixel_size: (H, W) of what it shows, in pixels of the tower's input.
        rows_N: The rows of its patch tokens, row-major; ``class_row`` that of its class token.
        pixels: From the patch embedding's input to the view's (3, H, W).
    """

    grid: Size
    pixel_size: Size
    rows_N: Tensor
    pixels: Callable[[Tensor], Tensor]
    class_row: int | None = None


class GatheredLayout:
    """Views that lie anywhere in a raw output: cropped, packed, padded or in another order.

    Made of the shapes that a raw output may have, without its width, and of its views in order.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], view_tokens: Sequence[ViewTokens]
    ) -> None:
        if not view_tokens:
            raise NoDepthError("the host's pictures were padding alone: there is no view")
        runs = itertools.groupby(view_tokens, key=lambda one: (one.grid, one.pixel_size))
        self._shapes = [tuple(shape) for shape in shapes]
        self._runs = [(size, list(run)) for size, run in runs]
        self.views = tuple(Views(len(run), *size) for size, run in self._runs)
        self._rows = [torch.stack([one.rows_N for one in run]) for _, run in self._runs]

    def to(self, device: torch.device) -> None:
        """Keeps the rows of the patch tokens where the tower is."""
        self._rows = [rows_BN.to(device) for rows_BN in self._rows]

    @property
    def rows(self) -> list[Tensor]:
        return self._rows

    @property
    def row_length(self) -> int:
        return self._shapes[0][-1]

    def tokens(self, levels: Mapping[int, Tensor]) -> list[dict[int, Tensor]]:
        for level, x in levels.items():
            if tuple(x.shape[:-1]) not in self._shapes:
                expected = " or ".join(str((*shape, "width")) for shape in self._shapes)
                raise NoDepthError(
                    f"level {level} came as {tuple(x.shape)}, expected {expected}: this tower lays "
                    "its tokens out in a way that its adapter does not know"
                )
        return [
            {level: _rows(x)[rows_BN.to(x.device)] for level, x in levels.items()}
            for rows_BN in self._rows
        ]

    def class_tokens(self, x: Tensor) -> list[Tensor]:
        return [
            _rows(x)[torch.tensor([one.class_row for one in run], device=x.device)]
            for _, run in self._runs
        ]

    def pixels(self, pixels: Tensor) -> list[Tensor]:
        return [torch.stack([one.pixels(pixels) for one in run]) for _, run in self._runs]


def _rows(x: Tensor) -> Tensor:
    """A raw output (R, D)."""
    return x.reshape(-1, x.shape[-1])


TokenLayout = PlainLayout | GatheredLayout
"""The layout of one pass."""
