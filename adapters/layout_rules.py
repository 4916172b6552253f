"""The rule by which a kind of tower lays its tokens out, and how it packs pictures.

From what the tower was called with a ``LayoutRule`` makes the ``TokenLayout`` of one pass, when
that pass is read: hooks never wait for a device.

Axes: B views, N patch tokens, P a patch's pixels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipdepth_plugin.adapters.layouts import TokenLayout
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import ImageError, NoDepthError

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
