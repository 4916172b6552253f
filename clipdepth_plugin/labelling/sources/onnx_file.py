"""``onnx:FILE``: a depth network in an ONNX file, with ``depth.json`` beside it.

One input (N, 3, H, W), one output (N, H, W) or (N, 1, H, W), floats both; N, H and W fixed or not.

Axes: B pictures, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.files.paths import check_file, names_in
from clipdepth_plugin.labelling.checked import CheckedSource, Estimate
from clipdepth_plugin.labelling.source import (
    DepthSource,
    Picture,
    SourceCard,
    register_source,
)
from clipdepth_plugin.labelling.versions import files_version
from clipdepth_plugin.lenses import LensCheck
from clipdepth_plugin.maps.geometry import ViewGeometry
from clipdepth_plugin.runtime.card import CARD_FILE, Card

_TYPES: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@register_source("onnx")
def open_onnx(text: str, *, device: str, dtype: str | None) -> DepthSource:
    """A session of onnxruntime; it computes in the dtype that the file has."""
    import onnxruntime

    path = Path(text)
    check_file(path, SourceError)
    card = Card.read(path.with_name(CARD_FILE), SourceError)
    place = torch.device(device)
    provider = _PROVIDERS.get(place.type)
    if provider not in onnxruntime.get_available_providers():
        raise SourceError(f"onnx:{text}: the installed onnxruntime does not run on {device}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    where = {"device_id": place.index or 0} if place.type == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, providers=[(provider, where)])
    # Large networks keep their weights in files beside, FILE.data or FILE_data.
    beside = [path.parent / name for name in names_in(path.parent, SourceError)]
    parts = [one for one in beside if one.name.startswith(path.name) and one.is_file()]
    source_card = SourceCard(
        source=f"onnx:{text}",
        units=card.units,
        version=files_version([*parts, path.with_name(CARD_FILE)]),
        licence=card.licence,
        max_depth=card.max_depth if card.canonical_focal is None else None,
        reads_focal=card.canonical_focal is not None,
    )
    source = OnnxSource(source_card, card, session)
    if dtype is not None and _TYPES[session.get_inputs()[0].type] != np.dtype(dtype).type:
        raise SourceError(f"onnx:{text}: takes {session.get_inputs()[0].type}; leave dtype out")
    return source


class OnnxSource(CheckedSource):
    """A network in a session of onnxruntime."""

    mixed_sizes = True

    def __init__(self, source_card: SourceCard, card: Card, session: Any) -> None:
        """Checks that the network is one from pictures to depth."""
        self.card = source_card
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        fits = len(inputs) == len(outputs) == 1 and len(inputs[0].shape) == 4
        if not fits or inputs[0].shape[1] != 3 or inputs[0].type not in _TYPES:
            described = ", ".join(f"{x.name} {x.type} {x.shape}" for x in (*inputs, *outputs))
            raise SourceError(
                f"{source_card.source}: expected one input of floats (N, 3, H, W) and one output; "
                f"it has {described}"
            )
        (self._input,) = inputs
        self._canonical, self._check_lens = card.canonical_focal, LensCheck()
        self._shown = card.preprocessing(self._size(card))

    def _size(self, card: Card) -> Size:
        fixed = self._input.shape[2:]
        size = card.size or fixed
        if not all(isinstance(side, int) for side in size):
            raise SourceError(
                f'{self.card.source}: its input has no fixed size: {fixed}; say "size": [height, '
                f"width] in {CARD_FILE}"
            )
        if any(isinstance(a, int) and a != b for a, b in zip(fixed, size, strict=True)):
            raise SourceError(
                f"{self.card.source}: its input is {fixed}, but {CARD_FILE} says {size}"
            )
        return (size[0], size[1])

    def run(self, pictures: Sequence[Picture]) -> list[Estimate]:
        """See ``CheckedSource.run``."""
        images = [Image.fromarray(picture.image_HW3) for picture in pictures]
        pixels_B3HW, views = frames(images, self._shown)
        maps_BHW = self._maps(pixels_B3HW.numpy())
        return [self._estimate(*one) for one in zip(pictures, maps_BHW, views, strict=True)]

    def _maps(self, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output of all pictures, in batches as the network takes them."""
        count, at_once = len(pixels_B3HW), self._input.shape[0]
        if not isinstance(at_once, int):
            at_once = count
        maps = []
        for start in range(0, count, at_once):
            batch: NDArray[Any] = pixels_B3HW[start : start + at_once].astype(
                _TYPES[self._input.type]
            )
            spare = at_once - len(batch)
            full = np.concatenate([batch, np.repeat(batch[-1:], spare, axis=0)])
            (out,) = self._session.run(None, {self._input.name: full})
            if out.ndim == 4 and out.shape[1] == 1:
                out = out[:, 0]
            if out.ndim != 3 or len(out) != at_once or out.dtype.kind != "f":
                raise SourceError(
                    f"{self.card.source}: gave {out.dtype} {out.shape} for {full.shape}, expected "
                    "floats (N, H, W) or (N, 1, H, W)"
                )
            maps.append(out[: len(batch)].astype(np.float32))
        return np.concatenate(maps)

    def _estimate(
        self, picture: Picture, map_HW: NDArray[np.float32], view: ViewGeometry
    ) -> Estimate:
        if not np.isfinite(map_HW).all():
            raise SourceError(f"{self.card.source}, {picture.name}: depth is NaN or infinite")
        depth_HW = view.to_image(torch.from_numpy(map_HW)[None])[0]
        if self._canonical is not None and picture.intrinsics is not None:
            self._check_lens(picture.intrinsics, view.image_size, picture.name)
            fx, fy, _, _ = view.intrinsics(picture.intrinsics)
            depth_HW = depth_HW * (math.sqrt(fx * fy) / self._canonical)
        says_something = depth_HW > 0 if self.card.units == "metres" else ~depth_HW.isnan()
        return Estimate(depth_HW, says_something)
