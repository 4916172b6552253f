"""How a tower's raw block outputs become each view's row-major tokens.

A ``LayoutRule`` knows a kind of tower. From what the tower was called with it makes the
``TokenLayout`` of one pass, when that pass is read: hooks never wait for a device.

Axes: B views, N = h * w patch tokens, T those and prefix tokens, D width, R rows of a raw output
with its axes before D flattened, H W pixels.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import ImageError, NoDepthError
from clipdepth_plugin.features import Views

POSITIONS = "position_embeddings"
"""The blocks' argument that rules read which prove their layout: rotary (cos, sin)."""
COS_SIN = ("rotary_pos_emb_cos", "rotary_pos_emb_sin")
"""As vLLM's blocks take them."""


class TowerCall(NamedTuple):
    """What one tower pass was given.

    Attributes:
        arguments: Those that its layout rule reads, by name, with ``POSITIONS`` for rules that
        prove. pixels_shape: Shape of the patch embedding's input, before its own module pads that
        to whole
            patches, right and below.
        patches_shape: Shape of its output.
    """

    arguments: Mapping[str, Any]
    pixels_shape: tuple[int, ...]
    patches_shape: tuple[int, ...]


def require(call: TowerCall, name: str, count: int | None = None) -> Tensor:
    """A tower's argument that its layout cannot be known without; ``count``: its length."""
    value = call.arguments.get(name)
    if value is None:
        raise NoDepthError(
            f"the tower was not given {name}, or its forward was not called: how its tokens are "
            "laid out is not known"
        )
    tensor = torch.as_tensor(value)
    if count is not None and len(tensor) != count:
        raise NoDepthError(f"{name} has {len(tensor)} entries for {count} pictures")
    return tensor


class LayoutRule(ABC):
    """Makes the layout of each pass of one kind of tower."""

    @property
    def takes(self) -> tuple[str | int, ...]:
        """Axes of the pixels that the tower takes: names, or the sizes they must have."""
        return ("images", 3, "H", "W")

    @property
    @abstractmethod
    def order(self) -> str:
        """How the tower lays its tokens out, in a few words."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The arguments of the tower that say how its tokens are laid out."""

    @property
    def proves(self) -> bool:
        """Whether ``POSITIONS`` are read, to prove the layout."""
        return False

    @property
    def sees_each_alone(self) -> bool:
        """Whether the patch embedding may run once for each picture of a pass."""
        return False

    @abstractmethod
    def resolve(self, call: TowerCall) -> TokenLayout:
        """The layout of a pass."""

    @property
    def mixes_sizes(self) -> bool:
        """Whether one pass takes views of several sizes."""
        return False

    @property
    def square(self) -> int:
        """Side of the squares of patches whose tokens follow each other in a raw output."""
        return 1

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the tower is called with to see such views, in their order.

        Args:
            views: (3, H, W) each, normalised.

        Returns:
            The pixels, and arguments by name; a tower leaves out those that it does not take.

        Raises:
            ImageError: It takes none of such sizes, or no pictures at all.
        """
        if self.takes != ("images", 3, "H", "W"):
            raise ImageError(
                f"the tower takes ({', '.join(map(str, self.takes))}): pictures alone are not "
                "enough for it, and it is not known what else to give it"
            )
        if len(sizes := {tuple(view.shape[1:]) for view in views}) > 1:
            raise ImageError(f"views of several sizes {sorted(sizes)}: this tower takes one size")
        return torch.stack([*views]), {}


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


def grid_of(view_3HW: Tensor, patch: Size, multiple: int = 1) -> Size:
    """The patch grid (h, w) of a view whose sides are whole multiples of so many patches."""
    height, width = view_3HW.shape[1:]
    sides = patch[0] * multiple, patch[1] * multiple
    if height < sides[0] or width < sides[1] or height % sides[0] or width % sides[1]:
        raise ImageError(
            f"pictures of {height} x {width} for a tower that takes whole multiples of "
            f"{sides[0]} x {sides[1]}: give it another size"
        )
    return height // patch[0], width // patch[1]


def padded_behind(views: Sequence[Tensor]) -> Tensor:
    """(B, 3, H, W): views of several sizes, with zeros below and at the right."""
    height, width = (max(view.shape[axis] for view in views) for axis in (1, 2))
    return torch.stack(
        [F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in views]
    )


def patch_rows(rows: Sequence[Tensor]) -> Tensor:
    """(B, N, P): the patches (n, P) of each view, with zeros behind up to the most."""
    return pad_sequence([*rows], batch_first=True)


def _rows(x: Tensor) -> Tensor:
    """A raw output (R, D)."""
    return x.reshape(-1, x.shape[-1])


TokenLayout = PlainLayout | GatheredLayout
"""The layout of one pass."""
