"""Batch and its rows: samples as tensors ready for the tower, in any view.

Axes: B samples, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layout_rules import padded_behind
from clipdepth_plugin.adapters.pixels import normalised
from clipdepth_plugin.data.augment import augment as vary
from clipdepth_plugin.data.augment import flipped, sample_generator
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.order import Draw
from clipdepth_plugin.data.seeds import mixed_seed
from clipdepth_plugin.data.views import View, make_view
from clipdepth_plugin.errors import DataError

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.arguments import Size
    from clipdepth_plugin.data.augment_config import AugmentConfig
    from clipdepth_plugin.data.sample import Sample

PLAIN, FLIPPED = 0, 1
FULL_WEIGHT = 255
"""Of a pixel that counts whole."""


@dataclass
class Batch:
    """Views of B samples.

    Attributes:
        pixels_B3HW: float32, normalised as the tower takes it; padded behind to the largest view.
        depth_B1HW: float32 in the units of each sample's set, at the output size asked for; 0 =
            invalid.
        intrinsics_B4: float32 (fx, fy, cx, cy) in pixels of the tower's input (not of the depth
            map, which covers the same view in its own size); rows of NaN where not known.
        names: B names.
        parts_B: int64, number of each sample's set, in the order in which the sets were given.
        weight_B1HW: uint8, how much each pixel of the depth counts, 255 being all of it; None
            where no sample has weights.
        sizes: (H, W) of each view; None where all are of the pixels' size.
    """

    pixels_B3HW: Tensor
    depth_B1HW: Tensor
    intrinsics_B4: Tensor
    names: list[str]
    parts_B: Tensor
    weight_B1HW: Tensor | None = None
    sizes: list[Size] | None = None

    @property
    def views(self) -> list[Tensor]:
        """The pixels (3, H, W) of each view."""
        whole = [*self.pixels_B3HW]
        if self.sizes is None:
            return whole
        return [x_3HW[:, :h, :w] for x_3HW, (h, w) in zip(whole, self.sizes, strict=True)]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Self:
        """The batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, as torch's loader asks for it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        changed: dict[str, Any] = {name: change(x) for name, x in tensors.items()}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a batch; see ``Batch`` for what it holds."""

    pixels_3HW: Tensor
    depth_1HW: Tensor
    intrinsics_4: Tensor
    name: str
    part: int = 0
    weight_1HW: Tensor | None = None


class ViewMaker:
    """Turns a sample into a row of a batch."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        output_size: tuple[int, int],
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Views for the host's preprocessing, with depth maps of ``output_size`` (H, W)."""
        self.preprocessing = preprocessing
        self.output_size = output_size
        self.augment = augment
        self.seed = seed

    def augment_with(self, own: AugmentConfig | None) -> AugmentConfig | None:
        """Augmentation of a set's samples: its own, else the run's; none where the run has none."""
        return self.augment if own is None or self.augment is None else own

    def fixed(self, sample: Sample, content: str, view: int, augment: AugmentConfig | None) -> Item:
        """View 0: plain. 1: flipped. Higher: augmented, the same in every epoch.

        ``content`` is the sample's hash: wherever the sample lies, its views are the same.
        """
        which = _drawn(0, content, view if view > FLIPPED else PLAIN)
        made = make_view(sample, self.preprocessing, self.output_size, which)
        if view == FLIPPED:
            made = flipped(made)
        elif view != PLAIN:
            assert augment is not None  # see TrainConfig
            number = int(content, 16)
            generator = sample_generator(self.seed, -view, number)  # epochs are never negative
            made, _ = vary(made, augment, generator)
        return self._item(made, sample.name)

    def random(
        self, sample: Sample, draw: Draw, epoch: int, *, own: AugmentConfig | None, part: int
    ) -> Item:
        """As augmentation has it in this epoch; ``own`` is that of the sample's set, ``part``."""
        augment = self.augment_with(own)
        which = 0.0
        if self.preprocessing.makes_own_sizes:  # else there is one view
            which = _drawn(epoch, _content(sample), draw.repeat)  # in epoch 0 as ``fixed``
        made = make_view(sample, self.preprocessing, self.output_size, which)
        if augment is not None:
            generator = sample_generator(self.seed, epoch, draw.index, draw.repeat)
            made, _ = vary(made, augment, generator)
        return self._item(made, sample.name, part)

    def _item(self, made: View, name: str, part: int = 0) -> Item:
        camera = made.intrinsics or (torch.nan,) * 4
        return Item(
            normalised(made.rgb_3HW, self.preprocessing),
            made.depth_1hw,
            torch.tensor(camera, dtype=torch.float32),
            name,
            part,
            made.weight_1hw,
        )


class SampleViews:
    """The samples of a set in numbered views, from which a token cache is made."""

    def __init__(self, data: SampleDataset, maker: ViewMaker) -> None:
        """Views of ``data`` as ``maker`` makes them."""
        self._data, self._maker = data, maker

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """A sample's name."""
        return self._data.name(index)

    def content(self, index: int) -> str:
        """Hash of a sample as read: picture, depth, its weight, camera."""
        return _content(self._data[index])

    def view(self, index: int, view: int, content: str) -> Item:
        """A view of a sample, whose content hash has to be this one."""
        sample = self._data[index]
        if _content(sample) != content:
            raise DataError(
                f"{self.name(index)}: its files have changed since they were hashed; run again "
                "when nothing writes to them"
            )
        return self._maker.fixed(sample, content, view, self.augment_of(index))

    def augment_of(self, index: int) -> AugmentConfig | None:
        """The augmentation of a sample, or None."""
        return self._maker.augment_with(self._data.augment_of(index))

    def view_key(self, index: int, view: int) -> str:
        """With a sample's content identifies a view of it: the recipe and seed."""
        if view in (PLAIN, FLIPPED):
            return ("plain", "flipped")[view]
        config = self.augment_of(index)
        recipe = "" if config is None else config.recipe()
        return f"augmented {view} seed {self._maker.seed} {recipe}"


def _drawn(epoch: int, content: str, repeat: int) -> float:
    """Which of a picture's views is taken, from 0 to 1; of no seed, as validation has none."""
    return mixed_seed("view of the picture", epoch, content, repeat) / 2**32


def _content(sample: Sample) -> str:
    digest = hashlib.blake2b(digest_size=16)
    weights = () if sample.weight_1HW is None else (sample.weight_1HW,)
    for tensor in (sample.image_3HW, sample.depth_1HW, *weights):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(repr(sample.intrinsics).encode())
    return digest.hexdigest()


def collate(items: Sequence[Item]) -> Batch:
    """Stacks rows into a batch."""
    views = [item.pixels_3HW for item in items]
    sizes = [(view.shape[1], view.shape[2]) for view in views]
    depths = [item.depth_1HW for item in items]
    weights = full_weights([item.weight_1HW for item in items], depths)
    return Batch(
        padded_behind(views),
        torch.stack(depths),
        torch.stack([item.intrinsics_4 for item in items]),
        [item.name for item in items],
        torch.tensor([item.part for item in items]),
        None if weights is None else torch.stack(weights),
        sizes if len({*sizes}) > 1 else None,
    )


def full_weights(weights: Sequence[Tensor | None], depths: Sequence[Tensor]) -> list[Tensor] | None:
    """Weights of these depths, where None counts whole; None where all are."""
    if all(one is None for one in weights):
        return None
    return [
        torch.full_like(depth, FULL_WEIGHT, dtype=torch.uint8) if one is None else one
        for one, depth in zip(weights, depths, strict=True)
    ]
