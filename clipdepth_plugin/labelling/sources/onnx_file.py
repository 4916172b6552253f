"""``onnx:FILE``: a depth network in an ONNX file, with ``depth.json`` beside it.

One input (N, 3, H, W), one output (N, H, W) or (N, 1, H, W), floats both; N, H and W fixed or not.
``tower_depth.onnx`` of an exported folder is one, too.

Axes: B pictures, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipdepth_plugin.adapters.arrays import frames
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
from clipdepth_plugin.runtime.network import Network, open_session
from clipdepth_plugin.runtime.placing import to_image


@register_source("onnx")
def open_onnx(text: str, *, device: str, dtype: str | None) -> DepthSource:
    """A session of onnxruntime; it computes in the dtype that the file has."""
    path = Path(text)
    check_file(path, SourceError)
    card = Card.read(path.with_name(CARD_FILE), SourceError)
    place = torch.device(device)
    session = open_session(path, place.type, SourceError, device=place.index or 0)
    network = Network(card, session, f"onnx:{text}", SourceError)
    if dtype not in (None, network.dtype):
        raise SourceError(f"onnx:{text}: takes {network.dtype}; leave dtype out")
    return OnnxSource(onnx_card(text, card), network)


def onnx_card(text: str, card: Card) -> SourceCard:
    """What ``onnx:FILE`` says of itself; ``text`` is FILE, ``card`` its depth.json.

    Raises:
        SourceError: A file of it can't be read.
    """
    path = Path(text)
    # Large networks keep their weights in files beside, FILE.data or FILE_data.
    beside = [path.parent / name for name in names_in(path.parent, SourceError)]
    parts = [one for one in beside if one.name.startswith(path.name) and one.is_file()]
    return SourceCard(
        source=f"onnx:{text}",
        units=card.units,
        version=files_version([*parts, path.with_name(CARD_FILE)]),
        licence=card.licence,
        max_depth=card.max_depth if card.canonical_focal is None else None,
        reads_focal=card.canonical_focal is not None,
    )


class OnnxSource(CheckedSource):
    """A network in a session of onnxruntime."""

    mixed_sizes = True

    def __init__(self, source_card: SourceCard, network: Network) -> None:
        """Keeps the network."""
        self.card = source_card
        self._network = network
        self._check_lens = LensCheck()
        self._shown = network.card.preprocessing(network.size)

    def run(self, pictures: Sequence[Picture]) -> list[Estimate]:
        """See ``CheckedSource.run``."""
        images = [Image.fromarray(picture.image_HW3) for picture in pictures]
        pixels_B3HW, views = frames(images, self._shown)
        scales = [self._scale(*one) for one in zip(pictures, views, strict=True)]
        names = [picture.name for picture in pictures]
        depth_BHW, confidence_BHW = self._network.run(pixels_B3HW, scales, names)
        estimates = []
        for index, view in enumerate(views):
            depth_HW = to_image(depth_BHW[index], view)
            metric = self.card.units == "metres"
            valid_HW = depth_HW > 0 if metric else ~np.isnan(depth_HW)
            sure_HW = None if confidence_BHW is None else to_image(confidence_BHW[index], view)
            estimates.append(Estimate(depth_HW, valid_HW, sure_HW))
        return estimates

    def _scale(self, picture: Picture, view: ViewGeometry) -> float | None:
        """True over canonical focal length; None where one of them is not known."""
        canonical = self._network.card.canonical_focal
        if canonical is None or picture.intrinsics is None:
            return None
        self._check_lens(picture.intrinsics, view.image_size, picture.name)
        fx, fy, _, _ = view.intrinsics(picture.intrinsics)
        return math.sqrt(fx * fy) / canonical
