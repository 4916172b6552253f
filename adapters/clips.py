"""The layout rule of towers that cut pictures, or clips of frames, into patches themselves.

All tokens of a picture or a clip are one row: other tokens, patches, other tokens. A tubelet (the
frames that one patch spans) is a view.

Axes: B pictures or clips, t tubelets of each, N = h * w patch tokens of one, H W pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clipdepth_plugin.adapters import layout_rules, layouts
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError

Order = Literal["frames first", "frames last", "frames apart"]
"""Tubelet after tubelet; patch after patch, each with its tubelets; each tubelet a row."""


@dataclass(frozen=True)
class ClipRule(layout_rules.LayoutRule):
    """Rows of a picture's or a clip's tokens.

    ``before`` and ``after``: how many tokens a row has around its patches; ``class_token``: the
    number of the class token in a row, from its end where negative. ``frames``: how many frames of
    a clip are one batch of pictures for a patch embedding that takes pictures.
    """

    patch_size: Size
    before: int = 0
    after: int = 0
    class_token: int | None = None
    clips: bool = False
    tokens: Order = "frames first"
    frames: int = 1
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def takes(self) -> tuple[str | int, ...]:
        return ("clips", "frames", 3, "H", "W") if self.clips else ("images", 3, "H", "W")

    @property
    def order(self) -> str:
        words = ["row-major"]
        if self.clips:
            words.append({"frames first": "tubelet after tubelet"}.get(self.tokens, self.tokens))
        if self.after:
            words.append("other tokens last")
        return ", ".join(words)

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        pictures, _, *times, height, width = call.pixels_shape
        grid = height // self.patch_size[0], width // self.patch_size[1]
        # A Conv3d's output says how many tubelets there are.
        tubelets = call.patches_shape[2] if times else self.frames
        views = pictures * tubelets if times else pictures
        if not times and pictures % tubelets:
            raise NoDepthError(
                f"the patch embedding was given {pictures} frames: no clips of {tubelets}"
            )
        a_row = 1 if self.tokens == "frames apart" else tubelets
        length = self.before + a_row * math.prod(grid) + self.after
        view_tokens = []
        for index in range(views):
            row, tubelet = divmod(index, a_row)
            place = tuple(divmod(index, tubelets)) if times else (index,)
            span = times[0] // tubelets if times else 1
            view_tokens.append(
                layouts.ViewTokens(
                    grid,
                    (height, width),
                    self._rows(math.prod(grid), tubelet, a_row) + row * length + self.before,
                    functools.partial(_pixels, place=place, span=span),
                    None if self.class_token is None else row * length + self.class_token % length,
                )
            )
        return layouts.GatheredLayout([(views // a_row, length)], view_tokens)

    def _rows(self, patches: int, tubelet: int, tubelets: int) -> Tensor:
        """The places of a tubelet's patches among all patches of its row."""
        if self.tokens == "frames last":
            return torch.arange(patches) * tubelets + tubelet
        return torch.arange(patches) + tubelet * patches


def _pixels(pixels: Tensor, place: tuple[int, ...], span: int) -> Tensor:
    """The first frame of a tubelet (picture, tubelet) of a Conv3d's input, or one picture."""
    if len(place) == 1:
        return pixels[place[0], :3]
    return pixels[place[0], :, place[1] * span]
