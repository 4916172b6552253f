"""LabelSink: depth of pictures in, frames of an RGB-D folder out; the only writer of such folders.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.labelling.folder import claimed_folder, make_meta
from clipdepth_plugin.labelling.frames import FrameFiles
from clipdepth_plugin.labelling.pictures.kinds import Content
from clipdepth_plugin.labelling.sequences import Sequences
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import SourceCard
from clipdepth_plugin.labelling.validity import Map, farthest, stored_label


class LabelSink:
    """Writes into one split of a folder; a context manager, used by several threads at once.

    On entering, meta.json is written, or the one that is there is checked. On leaving, the cameras
    of all frames are written.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        card: SourceCard,
        settings: LabelSettings,
        shard: Shard | None = None,
    ) -> None:
        """Nothing is read or made yet.

        Args:
            folder: The RGB-D folder.
            split: The folder in it.
            card: Whose depth it is.
            settings: How it was made.
            shard: The part of the pictures that this process has; None: all.

        Raises:
            SourceError: A setting does not fit the source's units.
        """
        self._folder, self._shard = folder, shard or Shard()
        self._meta = make_meta(card, settings)
        self._units, self._far = card.units, farthest(card, settings.max_depth)
        self._files = FrameFiles(card.units, settings.flip)
        self._sequences = Sequences(folder / split, self._files)

    def __enter__(self) -> Self:
        """See the class.

        Raises:
            SourceError: The folder holds something else.
            DepthFileError: It can't be written, or another process writes this shard.
        """
        self._held = claimed_folder(self._folder, self._meta, self._shard)
        self._held.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._sequences.flush()
        finally:
            self._held.__exit__(kind, error, trace)

    def has(self, name: str) -> bool:
        """Whether a frame ``<sequence>/<frame>`` is there. Asked by one thread, in order."""
        return self._sequences.has(name)

    def write(
        self,
        name: str,
        content: Content,
        camera: Intrinsics | None,
        depth_HW: Map,
        *,
        mirrored_HW: Map | None = None,
        keep_HW: NDArray[np.bool_] | None = None,
    ) -> bool:
        """Writes, or replaces, a frame ``<sequence>/<frame>``; whether any pixel of it counts.

        Args:
            name: Of the frame.
            content: The picture.
            camera: (fx, fy, cx, cy); None: not known.
            depth_HW: In the source's units; NaN: not known.
            mirrored_HW: That of the mirrored picture, mirrored back; None: not made.
            keep_HW: The user's mask; None: all.

        Raises:
            DepthFileError: It can't be written.
        """
        stored = stored_label(
            self._units, depth_HW, mirrored_HW, keep_HW=keep_HW, farthest_metres=self._far
        )
        folder, frame = self._sequences.folder(name)
        self._files.write(folder, frame, content, stored, camera)
        self._sequences.add(name, camera)
        return bool(stored.depth_HW.any())
