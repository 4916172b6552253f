"""An exported folder as variants of an audit: its tower alone, and with depth, in onnxruntime.

All outputs are read, as a host reads its tokens; what goes to a GPU and back is counted.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipdepth_plugin.errors import BenchError, ExportError
from clipdepth_plugin.latency.rounds import Variant
from clipdepth_plugin.latency.subject import Subject
from clipdepth_plugin.latency.variants import Entry
from clipdepth_plugin.runtime.folder import HOST_FILE, NETWORK_FILE, checked_card
from clipdepth_plugin.runtime.network import FOCAL, open_session

_DTYPES: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Exported:
    """Variants, and what is to be said of them."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def exported_passes(folder: Path, subject: Subject) -> Exported:
    """The passes of a folder on the pixels, the device and with the threads of a host.

    Raises:
        ExportError: A file is missing, damaged, or can't run there.
        BenchError: The folder takes pixels of another shape.
    """
    card = checked_card(folder, NETWORK_FILE)
    call = _pass_of(folder, NETWORK_FILE, subject, card.canonical_focal)
    depth = Variant("exported tower with depth", call)
    if HOST_FILE not in card.files:
        note = (
            "The exported tower alone is not measured, so that what depth adds to it is not "
            f"known: {folder} has no {HOST_FILE}; export it with the host alone."
        )
        return Exported((Entry(depth, "separate", "alone", form="onnx"),), (note,))
    checked_card(folder, HOST_FILE)
    alone = _pass_of(folder, HOST_FILE, subject)
    return Exported(
        (
            Entry(Variant("exported alone", alone), "exported", "alone", form="onnx"),
            Entry(Variant("exported again", alone), "exported", "control", form="onnx"),
            Entry(depth, "exported", "depth", form="onnx"),
        )
    )


def _pass_of(
    folder: Path, name: str, subject: Subject, focal: float | None = None
) -> Callable[[], object]:
    """A run of one network, all of its outputs."""
    pixels = subject.inputs.pixels
    # Threads of onnxruntime that spin after a run would slow the variant that follows.
    session = open_session(
        folder / name,
        pixels.device.type,
        ExportError,
        device=pixels.device.index or 0,
        threads=torch.get_num_threads(),
        spinning=False,
    )
    feed: dict[str, Any] = {}
    for one in session.get_inputs():
        if one.name == FOCAL:
            feed[one.name] = np.full(len(pixels), focal or 1.0, np.float32)
            continue
        pairs = zip(one.shape, pixels.shape, strict=False)
        wrong = len(one.shape) != pixels.ndim or any(
            isinstance(a, int) and a != b for a, b in pairs
        )
        if wrong or one.type not in _DTYPES:
            raise BenchError(
                f"{folder / name}: takes {one.name} {one.type} {one.shape}, but the host is "
                f"measured on {tuple(pixels.shape)}; give --size and --batch of the export"
            )
        feed[one.name] = pixels.float().cpu().numpy().astype(_DTYPES[one.type])
    run = partial(session.run, None, feed)
    run()
    return run
