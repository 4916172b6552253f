"""DepthSource: what gives depth for pictures: a depth model, a callable, an ONNX file, a head.

A kind of source is one file that registers itself (``register_source``); ``open_source`` finds it
by the word before the colon: ``hf:ORG/NAME``, ``python:module:function``, ``onnx:FILE``,
``head:HEAD@HOST``.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.arguments import Intrinsics, Units
from clipdepth_plugin.errors import ClipDepthError, SourceError, quoted, shortened


class SourceCard(BaseModel):
    """Where labels come from; goes into meta.json and into the card of a head trained on them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str
    """As ``open_source`` takes it."""

    units: Units

    version: str
    """What tells two states of the source apart: a revision, or a hash of its weights or code."""

    licence: str | None = None
    """As its own card says it; it may bind the heads that are trained on the labels."""

    max_depth: float | None = None
    """Metres at which it saturates; None: it has no such bound."""

    reads_focal: bool = False
    """Whether its metres depend on the focal length that it is told."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to label.

    Attributes:
        name: ``<sequence>/<frame>``, unique in its run.
        image_HW3: uint8 RGB.
        intrinsics: (fx, fy, cx, cy) in its pixels; None where not known.
    """

    name: str
    image_HW3: NDArray[np.uint8]
    intrinsics: Intrinsics | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What a source says of a picture, at the picture's own size.

    Attributes:
        depth_HW: float32 in the source's units; NaN where it says nothing.
        confidence_HW: float32 in 0..1, where the source has one.
    """

    depth_HW: NDArray[np.float32]
    confidence_HW: NDArray[np.float32] | None = None


class DepthSource(ABC):
    """A source, loaded and ready.

    Attributes:
        card: What it is.
    """

    card: SourceCard

    @abstractmethod
    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        """One label for each picture, each as if it were labelled alone.

        Raises:
            SourceError: The source failed, or gave something else than its contract says.
        """


OpenSource = Callable[..., DepthSource]
"""(what stands behind the colon, *, device, dtype) -> the source."""

DTYPES = (None, "float32", "float16", "bfloat16")
"""Of ``open_source``."""

SOURCES: dict[str, OpenSource] = {}
"""Word before the colon -> how to open such a source."""


def register_source(kind: str) -> Callable[[OpenSource], OpenSource]:
    """Registers how sources ``kind:...`` are opened."""

    def register(function: OpenSource) -> OpenSource:
        SOURCES[kind] = function
        return function

    return register


def open_source(text: str, *, device: str = "cpu", dtype: str | None = None) -> DepthSource:
    """Opens a source.

    Args:
        text: ``hf:ORG/NAME`` or ``hf:FOLDER``, ``python:module:function``, ``onnx:FILE``,
            ``head:HEAD@HOST``.
        device: Where it runs.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None: the source's own.

    Raises:
        SourceError: No such kind, or it can't be opened, or its units are not known.
    """
    import_module("clipdepth_plugin.labelling.sources")
    kind, _, rest = text.partition(":")
    if not rest or kind not in SOURCES:
        raise SourceError(
            f"depth source {quoted(text)}: expected KIND:WHAT with a kind of "
            f"{', '.join(sorted(SOURCES))}"
        )
    if dtype not in DTYPES:
        raise SourceError(f"dtype {quoted(dtype)}: expected {', '.join(filter(None, DTYPES))}")
    try:
        torch.ones(1, device=device).add(1).item()  # meta, for one, computes nothing
    except Exception as error:  # devices of other packages raise almost anything
        raise SourceError(
            f"device {quoted(device)}: nothing can be computed there ({shortened(error)})"
        ) from error
    try:
        return SOURCES[kind](rest, device=device, dtype=dtype)
    except (SourceError, MemoryError):
        raise
    except ClipDepthError as error:
        raise SourceError(f"depth source {shortened(text)}: {error}") from error
    except ModuleNotFoundError as error:
        raise SourceError(
            f"depth source {shortened(text)}: the package {error.name} is not installed"
        ) from error
    except (Exception, SystemExit) as error:  # libraries, their hub clients, modules of users
        raise SourceError(
            f"depth source {shortened(text)} can't be opened ({type(error).__name__}: "
            f"{shortened(error, 500)})"
        ) from error
