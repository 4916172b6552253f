"""DepthTower: host and plug-in as one plain module, for graphs and engines.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.static import StaticTower
from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.plugin.checks import check_fit, check_laid_out
from clipdepth_plugin.plugin.estimating import on_heads_device
from clipdepth_plugin.plugin.level_head import LevelHead

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


class DepthTower(nn.Module):
    """A host's vision tower with depth beside its own outputs, without hooks.

    The same function as the host's tower with a plug-in attached, bit for bit in eager, made for
    ``torch.export``, ``torch.compile`` and CUDA graphs: pictures of one size, the layout of tokens
    a constant. It runs a copy of the tower that shares the host's weights, in evaluation mode;
    moves and casts of the one leave the other as it is.

    What needs to look at data is done in eager alone: in compiled and exported code nothing checks
    that depth is finite, or that a camera is possible.

    Attributes:
        tower: What was found in the host, its modules those of the copy.
        input_shape: Shape of the pixels of the example.
        dynamic_batch: Whether any number of pictures is taken, and the first axis may be dynamic.
        level_head: The head alone, as a module of plain tensors.
        output_names: Names of all outputs, in order.
    """

    def __init__(
        self,
        host: nn.Module,
        head: DepthHead | FusedHead,
        tower: str | None = None,
        *,
        example: Tensor | None = None,
        other_tower: bool = False,
        native: bool = False,
        **tower_kwargs: Any,
    ) -> None:
        """Runs the tower once on the example; the host is only looked at.

        Args:
            host: Any model that ``attach`` takes.
            head: A head that fits its tower, or its inference form.
            tower: Module path of the tower, where the host has several.
            example: Pixels of the shape that is wanted, laid out as the tower takes them; their
                values do not matter. None: one picture of the head's input size, or else of the
                tower's.
            other_tower: As ``attach``.
            native: Leave maps at the head's own size, where they cover the view (16 x 16 to a
                patch); who resizes them to a picture then does so once, as ``predict``.
            tower_kwargs: What the tower needs beside pixels (``grid_thw`` ...): constants.

        Raises:
            TowerNotFoundError: As ``attach``.
            HeadMismatchError: As ``attach``.
            ImageError: The example is not laid out as the tower takes pixels.
            HostError: No example, and no size is known; or the tower needs more beside pixels, or
                is not there as a whole, or shows views of several sizes.
            NoDepthError: Tokens are not laid out as expected.
        """
        super().__init__()
        found = choose_tower(host, tower)
        check_fit(head, found, other_tower=other_tower)
        if example is None:
            example = _example(found, head.config.input_size)
        check_laid_out(example, found)
        self.vision = StaticTower(host, found, head.config, example, tower_kwargs)
        self.level_head = LevelHead(head, self.vision.views, found.patch_size, native=native)
        self.eval()
        self.tower = self.vision.tower
        self.input_shape = self.vision.input_shape
        self.dynamic_batch = self.vision.dynamic_batch
        with torch.no_grad():
            seen, _ = self.vision(example)
        confidence = ("confidence",) if head.config.confidence else ()
        self.output_names = (*seen, "depth", *confidence)

    def forward(
        self, pixel_values: Tensor, focal_px: Tensor | None = None
    ) -> tuple[dict[str, Tensor] | Tensor, ...]:
        """The tower's outputs and depth.

        Args:
            pixel_values: Of ``input_shape``, normalised as the tower takes them; any number of
                pictures with ``dynamic_batch``.
            focal_px: (B,) focal lengths in pixels of the tower's input; None: the head's canonical
                one.

        Returns:
            What the host reads of its tower, by name: what the tower's forward gives, or the hidden
            states that the host's config names (LLaVA). (B, 1, H, W) float32 metres at the tower's
            input size (``native``: the head's own), NaN for pictures of one colour. Where the head
            has it (B, 1, H, W) confidence.

        Raises:
            ImageError: Pixels of another shape.
            HeadMismatchError: A camera for a head that was trained without one.
            HostError: Not as many cameras as views, or no cameras; not in graphs.
            NoDepthError: The depth is not finite; not in graphs.
        """
        check_laid_out(pixel_values, self.tower)
        seen, run = self.vision(pixel_values)
        features = on_heads_device(run.batches[0], self.level_head.head)
        return seen, *self.level_head.of(features, focal_px, run.pixel_ranges())


def _example(tower: Tower, input_size: Size | None) -> Tensor:
    """One picture of the head's input size, or else of the tower's."""
    size = input_size or tower.image_size
    if tower.rule.takes != ("images", 3, "H", "W"):
        axes = ", ".join(map(str, tower.rule.takes))
        raise HostError(
            f"{tower} takes ({axes}), not pictures of a known size: give DepthTower(example=...) "
            "such pixels of the shape that is wanted, and by name what the tower takes beside them"
        )
    if size is None:
        raise HostError(
            f"neither the head nor {tower} says a size of pictures: give DepthTower(example=...) "
            "pixels (B, 3, H, W) of the shape that is wanted"
        )
    return torch.zeros(1, 3, *size)
