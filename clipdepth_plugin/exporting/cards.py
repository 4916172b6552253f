"""depth.json of an export.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.exporting.format import Written
from clipdepth_plugin.exporting.graphs import DEPTH, Exported
from clipdepth_plugin.exporting.plan import ExportSettings, Plan
from clipdepth_plugin.runtime.card import (
    FORMAT,
    Agreement,
    Card,
    Check,
    ExportedFile,
    MadeBy,
    Port,
    Provenance,
)

PICTURE_FILE, DEPTH_FILE = "picture.png", "picture.depth.npy"
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Of the picture's depth, by dtype: engines elsewhere sum in other orders."""


def describe_files(
    written: Written, exported: Exported, found: Mapping[str, Agreement], settings: ExportSettings
) -> dict[str, ExportedFile]:
    """A file, and those that it needs beside it."""
    graph = exported.graph
    with torch.no_grad():
        outputs = graph(*exported.example)
    dynamic = settings.dynamic_batch
    file = ExportedFile(
        sha256=_sha256(written.path),
        inputs=_ports(graph.input_names, exported.example, dynamic=dynamic),
        outputs=_ports(graph.output_names, outputs, dynamic=dynamic),
        opset=written.opset,
        dtype=settings.dtype,
        verified=found,
    )
    beside = {path.name: ExportedFile(sha256=_sha256(path)) for path in written.beside}
    return {written.path.name: file, **beside}


def make_card(plan: Plan, files: Mapping[str, ExportedFile]) -> Card:
    """The card of all files of a folder."""
    settings, framing = plan.settings, plan.framing
    head = plan.depth_tower.level_head.config
    said = head.provenance
    return Card(
        format=FORMAT,
        units="metres" if head.metric else "inverse depth",
        mean=framing.mean,
        std=framing.std,
        size=framing.size,
        resize=framing.resize or "squash",
        resize_to=framing.resize_to if framing.resize == "shortest" else None,
        crop_half=framing.crop_half,
        interpolation=framing.interpolation,
        canonical_focal=head.focal_at(framing.size) if head.metric else None,
        max_depth=head.saturates_at,
        licence=said.license,
        files=files,
        grid=plan.depth_tower.vision.views.grid,
        levels=head.levels,
        context=head.context if head.film else None,
        confidence=head.confidence,
        check=Check(picture=PICTURE_FILE, depth=DEPTH_FILE, tolerance=_TOLERANCES[settings.dtype]),
        host=settings.host_name,
        head=settings.head_name,
        tower_hashes=tower_hashes(plan.tower),
        provenance=Provenance(data=said.data, licence=said.license, notes=said.notes or None),
        made_by=MadeBy(
            version=_version("clipdepth-plugin"),
            torch=torch.__version__,
            onnx=_version("onnx") if "onnx" in settings.formats else None,
            date=datetime.now(UTC).date().isoformat(),
        ),
    )


def expected_depth(plan: Plan, picture: Image.Image) -> Tensor:
    """(H, W) the depth of a picture, in the card's units, by PyTorch in float32."""
    pixels_B3HW, (view,) = frames([picture], plan.framing)
    graph, focal_B = plan.references[0], torch.full((1,), plan.focal_px)
    with torch.no_grad():
        outputs: Sequence[Tensor] = graph(*graph.inputs_of(pixels_B3HW, focal_B))
    return view.to_image(outputs[graph.output_names.index(DEPTH)][0])[0]


def _ports(names: Sequence[str], tensors: Sequence[Tensor], *, dynamic: bool) -> tuple[Port, ...]:
    return tuple(
        Port(
            name=name,
            dtype=str(x.dtype).removeprefix("torch."),
            shape=("batch", *x.shape[1:]) if dynamic else tuple(x.shape),
        )
        for name, x in zip(names, tensors, strict=True)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
