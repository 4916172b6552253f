"""PackedCase: one row of the hosts that pad or pack pictures of several sizes.

Axes: B pictures, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.tiny.case import IMAGE_TOKEN, PATCH, fresh, library_names

Grid = tuple[int, int]
Inputs = dict[str, Tensor]
# Two of one size side by side, so that neighbours are grouped, and that size again later.
GRIDS: tuple[Grid, ...] = ((4, 2), (4, 2), (2, 6), (4, 2), (4, 4))


@dataclass(frozen=True, kw_only=True)
class PackedCase:
    """A tiny random host.

    Attributes:
        name: For ids.
        title: What people call it.
        build: Makes it.
        pack: Pictures (3, H, W) -> what its pictures become, by its library.
        tower: Path of its tower.
        family: Family file that must recognise it.
        contexts: Context kinds it must offer.
        depth: Number of its blocks.
        grids: Patch grids of the pictures it is tried with.
        tile: Patch grid of the tiles that it cuts pictures into; None where it does not.
        norms: Modules of the tower that would change coordinates on their way.
        see: Runs its vision on packed pictures; None: ``get_image_features``.
        pooled: The library's own pooled vectors (B, D) of packed pictures, or None.
        prompt: From the host and packed pictures to a whole prompt, or None where it takes none.
        needs: What transformers must have for it.
        since: The first release that has it in the form that is tested.
        channels_first: Whether flattened patches have one channel after another.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    pack: Callable[[list[Tensor]], Inputs]
    tower: str
    family: str
    contexts: tuple[str, ...] = ("mean",)
    depth: int = 4
    grids: tuple[Grid, ...] = GRIDS
    tile: Grid | None = None
    norms: tuple[str, ...] = ()
    see: Callable[[Any, Inputs], Any] | None = None
    pooled: Callable[[Any, Inputs], Tensor] | None = None
    prompt: Callable[[Any, Inputs], dict[str, Any]] | None = None
    needs: str
    since: tuple[int, int] = (4, 57)
    channels_first: bool = False

    def host(self) -> Any:
        """A host of this test's own, with its fixed weights, in evaluation mode."""
        return fresh(self.build)

    @property
    def absent(self) -> bool:
        """Whether the installed transformers lacks this host."""
        return self.needs not in library_names() or release() < self.since

    def run(self, host: Any, inputs: Inputs) -> Any:
        """Runs the host's vision."""
        return self.see(host, inputs) if self.see else host.get_image_features(**inputs)

    def pictures(self, grids: Sequence[Grid] | None = None) -> list[Tensor]:
        """Random pictures, (3, H, W) each."""
        noise = torch.Generator().manual_seed(1)
        sizes = [(h * PATCH, w * PATCH) for h, w in grids or self.grids]
        return [torch.rand(3, *size, generator=noise) for size in sizes]

    @property
    def views(self) -> list[tuple[int, int, int, Grid]]:
        """(picture, row, column, grid) of each view: its first patch, and how many it has."""
        views = []
        for picture, (h, w) in enumerate(self.grids):
            tile_h, tile_w = grid = self.tile or (h, w)
            corners = [(y, x) for y in range(0, h, tile_h) for x in range(0, w, tile_w)]
            views += [(picture, y, x, grid) for y, x in corners]
        return views


def release() -> tuple[int, int]:
    """Of the installed transformers."""
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def before_5() -> bool:
    """Whether the installed transformers is of release 4."""
    return release() < (5, 0)


def rows_of(out: Any) -> list[int]:
    """Number of tokens that pictures take in a prompt, as the host's library counts them."""
    out = getattr(out, "pooler_output", out)
    if isinstance(out, Tensor):
        return [out.shape[:-1].numel()]
    # Qwen3-VL of transformers 4: (features, deepstack features).
    if isinstance(out, tuple) and any(isinstance(one, list | tuple) for one in out):
        out = out[0]
    return [one.shape[:-1].numel() for one in out]


def prompt_for(host: Any, inputs: Inputs) -> dict[str, Any]:
    """A prompt with room for the pictures."""
    counts = rows_of(host.get_image_features(**for_features(inputs)))
    row = [token for count in counts for token in [92, *[IMAGE_TOKEN] * count]]
    ids = torch.tensor([[1, *row, 5, 6]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}


def for_features(inputs: Inputs) -> Inputs:
    return {name: x for name, x in inputs.items() if name != "mm_token_type_ids"}


def library_packing(name: str, **options: Any) -> Callable[[list[Tensor]], Inputs]:
    """The library's own image processor, which shall only pack."""

    def pack(pictures: list[Tensor]) -> Inputs:
        whole = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
        processor = getattr(transformers, name)(**whole, **options)
        packed = processor(images=pictures, return_tensors="pt")
        return {key: value for key, value in packed.items() if isinstance(value, Tensor)}

    return pack
