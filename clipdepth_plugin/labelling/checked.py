"""CheckedSource: what every source shares: pictures in batches, and checks of what came out.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.errors import SourceError, quoted, shortened
from clipdepth_plugin.labelling.source import DepthSource, Label, Picture

_NAMED = 3


class Estimate(NamedTuple):
    """What a source says of a picture, before it is checked.

    Attributes:
        depth_HW: Floats, an array or a tensor.
        valid_HW: Booleans; None: it says something of every pixel.
        confidence_HW: Floats in 0..1.
    """

    depth_HW: Any
    valid_HW: Any = None
    confidence_HW: Any = None


class CheckedSource(DepthSource):
    """A source whose ``run`` need not care for mixed sizes, failures and wrong output."""

    mixed_sizes = False
    """Whether ``run`` takes pictures of several sizes at once."""

    one_by_one = False
    """Whether ``run`` takes one picture at a time."""

    @abstractmethod
    def run(self, pictures: Sequence[Picture]) -> Sequence[Estimate]:
        """An estimate for each picture; what it raises becomes a SourceError."""

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        """See ``DepthSource.label``."""
        labels: dict[int, Label] = {}
        for indices in self._groups(pictures):
            group = [pictures[index] for index in indices]
            labels |= dict(zip(indices, self._labels(group), strict=True))
        return [labels[index] for index in range(len(pictures))]

    def _groups(self, pictures: Sequence[Picture]) -> list[list[int]]:
        groups: dict[object, list[int]] = {}
        for index, picture in enumerate(pictures):
            _check_picture(picture)
            size = None if self.mixed_sizes else picture.image_HW3.shape
            groups.setdefault(index if self.one_by_one else size, []).append(index)
        return list(groups.values())

    def _labels(self, pictures: Sequence[Picture]) -> list[Label]:
        names = ", ".join(shortened(one.name) for one in pictures[:_NAMED])
        names += f" and {len(pictures) - _NAMED} more" if pictures[_NAMED:] else ""
        try:
            estimates = self.run(pictures)
        except SourceError:
            raise
        except (Exception, SystemExit) as error:  # models and callables of others raise anything
            raise SourceError(
                f"{self.card.source} failed on {names} ({type(error).__name__}: "
                f"{shortened(error, 500)})"
            ) from error
        if len(estimates) != len(pictures):
            raise SourceError(
                f"{self.card.source}: {len(estimates)} depth maps for {len(pictures)} pictures "
                f"({names})"
            )
        return [
            _label(estimate, picture, self.card.units, f"{self.card.source}, {picture.name}")
            for estimate, picture in zip(estimates, pictures, strict=True)
        ]


def _check_picture(picture: Picture) -> None:
    image = picture.image_HW3
    known = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not known or image.shape[2] != 3 or 0 in image.shape:
        raise SourceError(f"{picture.name}: expected a picture of uint8 RGB, (H, W, 3)")


def _label(estimate: Estimate, picture: Picture, units: Units, where: str) -> Label:
    size: tuple[int, int] = picture.image_HW3.shape[:2]
    depth_HW = _floats(estimate.depth_HW, size, f"{where}: depth")
    valid_HW = np.ones(size, bool)
    if estimate.valid_HW is not None:
        valid_HW = _array(estimate.valid_HW, size, "b", f"{where}: validity")
    _refuse(valid_HW & ~np.isfinite(depth_HW), f"{where}: depth is NaN or infinite")
    if units == "metres":
        _refuse(valid_HW & (depth_HW <= 0), f"{where}: depth is not above 0 m")
    depth_HW[~valid_HW] = np.nan
    if estimate.confidence_HW is None:
        return Label(depth_HW)
    confidence_HW = _floats(estimate.confidence_HW, size, f"{where}: confidence")
    within = (confidence_HW >= 0) & (confidence_HW <= 1)
    _refuse(valid_HW & ~within, f"{where}: confidence is not in 0..1")
    confidence_HW[~valid_HW] = np.nan
    return Label(depth_HW, confidence_HW)


def _floats(value: Any, size: tuple[int, int], where: str) -> NDArray[np.float32]:
    """A float32 copy; too large for it is infinite."""
    with np.errstate(over="ignore"):
        return np.array(_array(value, size, "f", where), dtype=np.float32)


def _array(value: Any, size: tuple[int, int], kind: str, where: str) -> NDArray[Any]:
    """An array or tensor of a picture's size, of floats ("f") or booleans ("b")."""
    if isinstance(value, Tensor):
        try:
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy(force=True)
        except Exception as error:  # sparse, quantised, of the meta device
            raise SourceError(f"{where}: {shortened(error)}") from error
    expected = {"f": "floats", "b": "booleans"}[kind]
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise SourceError(
            f"{where}: got {quoted(value)}, expected a NumPy array or a tensor of {expected}"
        )
    if value.shape != size or value.dtype.kind != kind:
        raise SourceError(
            f"{where}: got {value.dtype} {value.shape}, expected {expected} {size}, the picture's "
            "(height, width)"
        )
    return value


def _refuse(wrong_HW: NDArray[np.bool_], what: str) -> None:
    if count := int(wrong_HW.sum()):
        raise SourceError(
            f"{what} at {count} of {wrong_HW.size} pixels that are not said to be invalid"
        )
