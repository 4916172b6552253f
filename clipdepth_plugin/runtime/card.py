"""``depth.json``: what a network of depth takes and gives, whoever wrote it.

``clipdepth export`` writes all of it. Of a network that comes from elsewhere (``onnx:FILE`` of
``clipdepth label``) ``units``, ``mean`` and ``std`` are enough. Sizes are (height, width).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from clipdepth_plugin.adapters.preprocessing import (
    Interpolation,
    Preprocessing,
    ResizeKind,
    Triple,
)
from clipdepth_plugin.adapters.processors.whole import Half
from clipdepth_plugin.arguments import (
    Size,
    StrPath,
    Units,
    parse_count,
    parse_focal_length,
    parse_metres,
    parse_numbers,
    parse_size,
)
from clipdepth_plugin.errors import ClipDepthError, ExportError
from clipdepth_plugin.files.documents import read_json
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.runtime.fields import (
    axis,
    by,
    file_name,
    hash_text,
    mapping_of,
    nested,
    number,
    one_of,
    read_fields,
    signed_share,
    text,
    truth,
    tuple_of,
    whole,
)

CARD_FILE = "depth.json"
FORMAT: Literal["clipdepth-export/1"] = "clipdepth-export/1"

_EXAMPLE = '{"units": "metres", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
_ABSENT = (
    "no such file: it says how the network beside it takes its pictures and in which units it "
    f'answers; write one, such as {_EXAMPLE}; further fields are "size": [height, width], '
    '"resize", "interpolation", "canonical_focal", "max_depth" and "licence"'
)
_LIMIT = 1 << 22  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        dtype: ``float32`` ...
        shape: Lengths; names where any length is taken.
    """

    name: Annotated[str, text]
    dtype: Annotated[str, text]
    shape: Annotated[tuple[int | str, ...], tuple_of(axis)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far an output of the file is from PyTorch's: the worst of all pictures.

    Attributes:
        worst: Largest difference over the largest value.
        cosine: Least cosine.
    """

    worst: Annotated[float, number]
    cosine: Annotated[float, signed_share]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file of the folder.

    Attributes:
        sha256: Of its bytes.
        inputs: Of its graph.
        outputs: Of its graph.
        opset: Of ONNX.
        dtype: What it computes in.
        verified: Output -> how far it is from PyTorch's.
    """

    sha256: Annotated[str, hash_text]
    inputs: Annotated[tuple[Port, ...], tuple_of(nested(Port))] = ()
    outputs: Annotated[tuple[Port, ...], tuple_of(nested(Port))] = ()
    opset: Annotated[int | None, whole] = None
    dtype: Annotated[str | None, text] = None
    verified: Annotated[Mapping[str, Agreement], mapping_of(nested(Agreement))] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A picture and the depth that PyTorch gave of it.

    Attributes:
        picture: A file of the folder.
        depth: A .npy file of the folder: float32 (H, W) in the card's units, at the picture's size.
        focal_px: In the picture's pixels; None: not given.
        tolerance: Largest difference over the largest value.
    """

    picture: Annotated[str, file_name]
    depth: Annotated[str, file_name]
    focal_px: Annotated[float | None, by(parse_focal_length)] = None
    tolerance: Annotated[float, number] = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the head comes from.

    Attributes:
        data: The data sets it was trained on, with their licences.
        licence: SPDX identifier of its weights' licence.
        notes: What else its user should know.
    """

    data: Annotated[tuple[str, ...], tuple_of(text)] = ()
    licence: Annotated[str | None, text] = None
    notes: Annotated[str | None, text] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """The versions that wrote the folder, and the day."""

    version: Annotated[str, text]
    torch: Annotated[str | None, text] = None
    onnx: Annotated[str | None, text] = None
    date: Annotated[str | None, text] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """``depth.json``.

    Attributes:
        format: Of exported folders ``FORMAT``; None: written by hand.
        units: Of the output ``depth``: ``metres``, or ``inverse depth`` up to scale and shift.
        mean: Subtracted from RGB in 0..1.
        std: Divided by after that.
        size: (H, W) of the input; needed where the network leaves it open.
        resize: How a picture is brought to that size; see ``adapters.preprocessing.Preprocessing``.
        resize_to: With ``shortest``: the short side's length before the crop.
        crop_half: With ``shortest``: how that crop rounds half pixels.
        interpolation: Filter of the resize.
        canonical_focal: Focal length in pixels of ``size`` that its metres are for. Graphs with an
            input ``focal_px`` scale them for another; the metres of others are multiplied by the
            true one over this. None: metres do not follow from the lens.
        max_depth: Metres at which it saturates.
        licence: Of the network.
        files: Name -> what the file is.
        grid: (h, w) patches of the tower.
        levels: What the head reads of the tower, as inputs of ``head.onnx``.
        context: ``pooled``, ``cls`` or ``mean``; None: the head reads none.
        confidence: Whether it predicts confidence.
        check: A picture with its depth.
        host: What the tower is of.
        head: The head's name.
        tower_hashes: dtype -> hash of the tower's weights.
        provenance: Where the head comes from.
        made_by: Versions.
    """

    units: Annotated[Units, one_of(get_args(Units))]
    mean: Annotated[Triple, by(parse_numbers, 3)]
    std: Annotated[Triple, by(parse_numbers, 3, positive=True)]
    format: Annotated[str | None, one_of([FORMAT])] = None
    size: Annotated[Size | None, by(parse_size)] = None
    resize: Annotated[ResizeKind, one_of(get_args(ResizeKind))] = "squash"
    resize_to: Annotated[int | None, by(parse_count)] = None
    crop_half: Annotated[Half, one_of(get_args(Half))] = "even"
    interpolation: Annotated[Interpolation, one_of(get_args(Interpolation))] = "bicubic"
    canonical_focal: Annotated[float | None, by(parse_focal_length)] = None
    max_depth: Annotated[float | None, by(parse_metres)] = None
    licence: Annotated[str | None, text] = None
    files: Annotated[Mapping[str, ExportedFile], mapping_of(nested(ExportedFile), file_name)] = (
        field(default_factory=dict)
    )
    grid: Annotated[Size | None, by(parse_size)] = None
    levels: Annotated[tuple[int, ...], tuple_of(whole)] = ()
    context: Annotated[str | None, one_of(("pooled", "cls", "mean"))] = None
    confidence: Annotated[bool, truth] = False
    check: Annotated[Check | None, nested(Check)] = None
    host: Annotated[str | None, text] = None
    head: Annotated[str | None, text] = None
    tower_hashes: Annotated[Mapping[str, str], mapping_of(text)] = field(default_factory=dict)
    provenance: Annotated[Provenance | None, nested(Provenance)] = None
    made_by: Annotated[MadeBy | None, nested(MadeBy)] = None

    @classmethod
    def read(cls, path: StrPath, error: type[ClipDepthError] = ExportError) -> Card:
        """Reads a file.

        Raises:
            ClipDepthError: ``error``; it is missing, no JSON, larger than 4 MiB, or a field (named
                in the message) is unknown, missing or wrong.
        """
        check_file(Path(path), error, _ABSENT)
        tree = read_json(path, error, limit=_LIMIT)
        try:
            return read_fields(cls, tree, "")
        except ExportError as problem:
            raise error(f"{path}: {problem}") from problem

    def __post_init__(self) -> None:
        """Refuses fields that do nothing beside others."""
        relative, squashed = not self.metric, self.resize != "shortest"
        for name, given, idle, why in (
            ("canonical_focal", self.canonical_focal is not None, relative, "units: inverse depth"),
            ("max_depth", self.max_depth is not None, relative, "units: inverse depth"),
            ("resize_to", self.resize_to is not None, squashed, "another resize than shortest"),
        ):
            if given and idle:
                raise ExportError(f"{name}: does nothing with {why}; leave one of the two out")

    @property
    def metric(self) -> bool:
        """Whether it gives metres."""
        return self.units == "metres"

    def focal_at(self, size: Size) -> float | None:  # noqa: ARG002 (maps.cameras.Canonical)
        """The canonical focal length at its one size."""
        return self.canonical_focal

    def preprocessing(self, size: Size) -> Preprocessing:
        """How a picture becomes the input of a network of this size."""
        return Preprocessing(
            self.mean,
            self.std,
            size,
            self.resize,
            self.resize_to,
            self.interpolation,
            self.crop_half,
        )

    def to_json(self) -> str:
        """The file's text; what is None or empty is left out."""
        return json.dumps(_plain(self), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((one.name, getattr(value, one.name)) for one in dataclasses.fields(value))
        return {name: _plain(given) for name, given in pairs if given not in (None, {}, ())}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
