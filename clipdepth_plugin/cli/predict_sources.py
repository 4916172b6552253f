"""Where ``clipdepth predict`` gets its maps: a head beside its host, or an exported folder.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.errors import ExportError
from clipdepth_plugin.maps.cameras import Canonical, Focals
from clipdepth_plugin.runtime.folder import NETWORK_FILE, read_card

if TYPE_CHECKING:
    from clipdepth_plugin.labelling.source import SourceCard
    from clipdepth_plugin.plugin.streams import DepthStream


class Says(Canonical, Protocol):
    """What a head or a card says of its maps."""

    @property
    def confidence(self) -> bool:
        """Whether there is confidence."""


@dataclass(frozen=True)
class Maps:
    """Of one picture.

    Attributes:
        map_HW: float32 metres, or relative inverse depth; NaN is no depth.
        metric: Which of them.
        confidence_HW: Probabilities, where they are predicted.
    """

    map_HW: NDArray[np.float32]
    metric: bool
    confidence_HW: NDArray[np.float32] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it has no depth at all."""
        return bool(np.isnan(self.map_HW).all())

    def where(self, seen_HW: NDArray[np.bool_] | None) -> Maps:
        """The maps of a part of the picture; None: of all."""
        if seen_HW is None:
            return self
        sure_HW = self.confidence_HW
        return Maps(
            np.where(seen_HW, self.map_HW, np.float32(np.nan)),
            self.metric,
            None if sure_HW is None else np.where(seen_HW, sure_HW, np.float32(np.nan)),
        )


class MapSource(ABC):
    """Opened in two steps, so that what it says is checked before a host is loaded.

    Attributes:
        name: For messages.
        says: What its maps are.
    """

    name: str
    says: Says

    @abstractmethod
    def open(self) -> None:
        """Makes it ready."""

    def cut(self) -> None:  # noqa: B027 (only sources of streams have something to do)
        """The next picture is of another camera, or of another time."""

    @abstractmethod
    def card(self) -> SourceCard:
        """Whose maps they are, as ``clipdepth label`` says it of the same head; once it is open.

        Raises:
            ClipDepthError: A file of it can't be read.
        """

    @abstractmethod
    def maps(self, images: Sequence[Image.Image], focal_px: Focals | None) -> list[Maps]:
        """The maps of RGB pictures; a focal length in pixels, for all or (None: unknown) each."""


def find_source(
    host: str | None,
    head: str | None,
    exported: Path | None,
    device: str,
    tower: str | None,
    *,
    other_tower: bool,
    stream: bool = False,
) -> MapSource:
    """The source that the options name; ``stream``: pictures are frames of a camera, in order."""
    if exported is not None:
        return _Exported(exported, device)
    assert host is not None
    assert head is not None
    return _Beside(host, head, device, tower, other_tower=other_tower, stream=stream)


def frames_in_order(paths: Sequence[Path]) -> list[Path]:
    """Pictures by folder, as these come, and in each by the numbers in their names.

    So frame 10 comes after frame 9, and 7.25 after 7.1305 as times do.
    """
    folders = list(dict.fromkeys(path.parent for path in paths))
    return sorted(paths, key=lambda path: (folders.index(path.parent), _in_number_order(path)))


def _in_number_order(path: Path) -> list[tuple[bool, Decimal, str]]:
    """Text and numbers in turn."""
    parts = re.split(r"(\d+(?:\.\d+)?)", path.stem, flags=re.ASCII)
    numbered = [
        (bool(index % 2), Decimal(part if index % 2 else 0), part)
        for index, part in enumerate(parts)
    ]
    return [*numbered, (False, Decimal(0), path.suffix)]


class _Exported(MapSource):
    def __init__(self, folder: Path, device: str) -> None:
        self.name = str(folder)
        self.says = self._card = read_card(folder)
        self._folder, self._device = folder, device

    def open(self) -> None:
        from clipdepth_plugin import runtime

        provider, colon, index = self._device.partition(":")
        if colon and not (index.isascii() and index.isdecimal() and len(index) < 4):
            raise ExportError(f"--device {self._device}: expected cpu, cuda, cuda:1 or tensorrt")
        self._model = runtime.open(self._folder, provider, device=int(index or 0))

    def card(self) -> SourceCard:
        from clipdepth_plugin.labelling.sources.onnx_file import onnx_card

        return onnx_card(str(self._folder / NETWORK_FILE), self._card)

    def maps(self, images: Sequence[Image.Image], focal_px: Focals | None) -> list[Maps]:
        results = self._model.batch(list(images), focal_px)
        return [Maps(one.map_HW, self.says.metric, one.confidence) for one in results]


class _Beside(MapSource):
    def __init__(
        self,
        host: str,
        head: str,
        device: str,
        tower: str | None,
        *,
        other_tower: bool,
        stream: bool,
    ) -> None:
        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.shipped import load_head

        self._device = find_device(device)
        self._head = load_head(head)
        self.name, self.says = head, self._head.config
        self._host = host
        self._options: dict[str, Any] = {"tower": tower, "other_tower": other_tower}
        self._streams = stream
        self._stream: DepthStream | None = None

    def open(self) -> None:
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
        from clipdepth_plugin.plugin.pictures import PictureDepth

        host = load_host(self._host)
        self._plugin = plugin = DepthPlugin(
            host.model.to(self._device),
            self._head.to(self._device),
            processor=host.preprocessing,
            **self._options,
        )
        if self._streams:
            self._stream = plugin.stream("predict", view="all")
        self._depth_of = PictureDepth(plugin, stream=self._stream)

    def card(self) -> SourceCard:
        from clipdepth_plugin.labelling.sources.plugin_head import head_card

        return head_card(f"{self.name}@{self._host}", self._head, self._plugin)

    def cut(self) -> None:
        if self._stream is not None:
            self._stream.reset()

    def maps(self, images: Sequence[Image.Image], focal_px: Focals | None) -> list[Maps]:
        from clipdepth_plugin.maps.alignment import inverse_of

        found = []
        for map_CHW in self._depth_of(images, focal_px=focal_px):
            depth_HW, *confidence = map_CHW.cpu()
            metric = self.says.metric
            map_HW = depth_HW if metric else inverse_of(depth_HW)
            sure = confidence[0].numpy() if confidence else None
            found.append(Maps(map_HW.numpy(), metric, sure))
        return found
