"""An exported folder as a function from pictures to depth.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.adapters.arrays import frames
from clipdepth_plugin.arguments import StrPath, Units, parse_camera
from clipdepth_plugin.errors import ExportError, ImageError, NoDepthError, quoted
from clipdepth_plugin.lenses import LensCheck
from clipdepth_plugin.maps.cameras import Cameras, Focals, camera_scales
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.runtime.card import CARD_FILE, Card
from clipdepth_plugin.runtime.folder import NETWORK_FILE, checked_card, load_map, verify
from clipdepth_plugin.runtime.network import Network, open_session
from clipdepth_plugin.runtime.pictures import Picture, as_image
from clipdepth_plugin.runtime.placing import to_image

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The depth of a picture.

    Attributes:
        units: Of ``map_HW``.
        map_HW: float32; NaN where the tower did not see the picture, or it is of one colour.
        confidence: (H, W) probabilities of depth within a factor of 1.25; None: not predicted.
    """

    units: Units
    map_HW: Floats
    confidence: Floats | None = None

    @property
    def depth(self) -> Floats:
        """(H, W) metres along the optical axis.

        Raises:
            NoDepthError: The head gives relative depth, no metres.
        """
        return self._in("metres", "inverse_depth")

    @property
    def inverse_depth(self) -> Floats:
        """(H, W) relative: larger is nearer, with a scale and a shift of the picture's own.

        Raises:
            NoDepthError: The head gives metres.
        """
        return self._in("inverse depth", "depth")

    def points(self, intrinsics: Any) -> Floats:
        """(H, W, 3) metres in the camera's frame: x right, y down, z forward.

        Args:
            intrinsics: (fx, fy, cx, cy) or a 3x3 matrix K, in pixels of the picture.

        Raises:
            NoDepthError: The head gives relative depth, no metres.
            HostError: No camera of such a picture.
        """
        z_HW, camera = self.depth, parse_camera(intrinsics, "intrinsics")
        height, width = z_HW.shape
        LensCheck()(camera, (height, width), "intrinsics")
        fx, fy, cx, cy = camera
        y_H1, x_W = np.ogrid[:height, :width]
        points_HW3 = np.stack([(x_W - cx) / fx * z_HW, (y_H1 - cy) / fy * z_HW, z_HW], axis=-1)
        return points_HW3.astype(np.float32)

    def _in(self, units: Units, other: str) -> Floats:
        if units != self.units:
            raise NoDepthError(f"this network gives {self.units}, not {units}: read .{other}")
        return self.map_HW


class ExportedModel:
    """From pictures to depth; ``open_folder`` makes it.

    Attributes:
        folder: Where it lies.
        card: ``depth.json``.
        provider: What it runs on.
    """

    def __init__(self, folder: Path, card: Card, network: Network, provider: str) -> None:
        """Keeps what is open."""
        self.folder, self.card, self.provider = folder, card, provider
        self._network = network
        self._shown = card.preprocessing(network.size)
        self._lens = LensCheck()
        self._said = False

    def __call__(
        self, picture: Picture, focal_px: float | None = None, intrinsics: Any = None
    ) -> Result:
        """The depth of a picture.

        Args:
            picture: A file, (H, W, 3) uint8 RGB, or an RGB image of PIL.
            focal_px: Focal length in its pixels.
            intrinsics: (fx, fy, cx, cy) or a 3x3 matrix K, in its pixels.

        Raises:
            ImageError: It can't be read, or is no picture.
            HeadMismatchError: A camera for a head without a canonical one.
            HostError: No camera of such a picture.
            ExportError: The network fails, or its depth is not finite.
        """
        (result,) = self.batch([picture], focal_px, intrinsics)
        return result

    def batch(
        self,
        pictures: Sequence[Picture],
        focal_px: Focals | None = None,
        intrinsics: Cameras | None = None,
    ) -> list[Result]:
        """The depth of pictures of any sizes, in one run where the network takes as many.

        ``focal_px`` and ``intrinsics``: one for all, or one (None: not known) for each; else as
        one picture.
        """
        if not isinstance(pictures, list | tuple):
            raise ImageError(f"pictures: got {quoted(pictures)}, expected a list of pictures")
        if pictures and intrinsics is None and focal_px is None:
            self._say_assumed()
        return self._batch(pictures, focal_px, intrinsics)

    def _batch(
        self,
        pictures: Sequence[Picture],
        focal_px: Focals | None = None,
        intrinsics: Cameras | None = None,
    ) -> list[Result]:
        if not pictures:
            return []
        names = [f"picture {index}" for index in range(len(pictures))]
        images = [as_image(*one) for one in zip(pictures, names, strict=True)]
        pixels_B3HW, views = frames(images, self._shown)
        scales: list[float | None] = [None] * len(views)
        if intrinsics is not None or focal_px is not None:
            placed = [ImageViews((view,)) for view in views]
            scales = camera_scales(self.card, placed, intrinsics, focal_px, self._lens)
        depth_BHW, confidence_BHW = self._network.run(pixels_B3HW, scales, names)
        return [
            Result(
                self.card.units,
                to_image(depth_BHW[index], view),
                None if confidence_BHW is None else to_image(confidence_BHW[index], view),
            )
            for index, view in enumerate(views)
        ]

    def check(self) -> float:
        """Runs the folder's own picture: largest difference from PyTorch's depth over the largest.

        Raises:
            ExportError: It is over the tolerance of the card, or the folder has no such picture.
        """
        check = self.card.check
        if check is None:
            raise ExportError(
                f"{self.folder / CARD_FILE}: has no picture with its expected depth (check); "
                "export the folder again"
            )
        for name in (check.picture, check.depth):
            if name in self.card.files:
                verify(self.folder, name, self.card)
        expected_HW = load_map(self.folder / check.depth)
        (result,) = self._batch([self.folder / check.picture], check.focal_px)
        found = result.map_HW
        if found.shape != expected_HW.shape:
            raise ExportError(
                f"{check.depth}: has shape {expected_HW.shape}, {check.picture} {found.shape}"
            )
        known_HW = np.isfinite(expected_HW)
        if not known_HW.any() or (known_HW != np.isfinite(found)).any():
            raise ExportError(f"{self.folder}: depth is not where {check.depth} has it")
        largest = float(np.abs(expected_HW[known_HW]).max()) or 1.0
        worst = float(np.abs(found - expected_HW)[known_HW].max()) / largest
        if not worst <= check.tolerance:
            raise ExportError(
                f"{self.folder}: on {self.provider} depth of {check.picture} differs by "
                f"{worst:.2g} from what PyTorch gave, more than {check.tolerance:g}; export it "
                "again, or in float32"
            )
        return worst

    def _say_assumed(self) -> None:
        if self._said or self.card.canonical_focal is None:
            return
        self._said = True
        height, width = self._network.size
        logger.warning(
            "no camera given: the metres are those of a focal length of %g px at %d x %d; "
            "focal_px=... or intrinsics=... (clipdepth predict: --focal-px) give those of another",
            *(self.card.canonical_focal, height, width),
        )


def open_folder(
    folder: StrPath, provider: str = "cpu", *, device: int = 0, threads: int | None = None
) -> ExportedModel:
    """Opens what ``clipdepth export`` wrote; files are compared with their checksums.

    Args:
        folder: It has ``depth.json`` and ``tower_depth.onnx``.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        device: Number of the GPU.
        threads: Of the CPU; None: onnxruntime's own choice.

    Raises:
        ExportError: A file is missing, damaged or another one, or the provider can't run it.
    """
    card = checked_card(folder, NETWORK_FILE)
    path = Path(folder) / NETWORK_FILE
    session = open_session(path, provider, ExportError, device=device, threads=threads)
    return ExportedModel(
        path.parent, card, Network(card, session, str(path), ExportError), provider
    )
