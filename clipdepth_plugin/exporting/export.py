"""export(): tower and head of a host as files of a folder, verified, with their card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.errors import ExportError
from clipdepth_plugin.exporting import onnx_format, torch_formats  # noqa: F401 (they register)
from clipdepth_plugin.exporting.cards import (
    DEPTH_FILE,
    PICTURE_FILE,
    describe_files,
    expected_depth,
    make_card,
)
from clipdepth_plugin.exporting.format import FORMATS, Format
from clipdepth_plugin.exporting.graphs import MOST, Graph, cast, export_graph
from clipdepth_plugin.exporting.picture import check_picture
from clipdepth_plugin.exporting.plan import ExportSettings, Plan, make_plan
from clipdepth_plugin.exporting.tensorrt import build_line
from clipdepth_plugin.exporting.verifying import DTYPES, example_inputs, verify
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.files.locks import check_new
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.runtime.card import CARD_FILE, Card, ExportedFile

_BATCH = 3
NEW_ALONE = "an export is written to a new folder, and nothing is overwritten"
Say = Callable[[str], object]


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        card: As it stands in the folder.
        doubts: By file: what TensorRT 10 may not read.
    """

    card: Card
    doubts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def engines(self) -> tuple[str, ...]:
        """The lines of trtexec that build engines of the ONNX files."""
        return tuple(
            build_line(name, {port.name: port.shape for port in file.inputs}, most=MOST)
            for name, file in self.card.files.items()
            if name.endswith(".onnx")
        )


def export(
    host: nn.Module,
    head: DepthHead,
    folder: Path,
    settings: ExportSettings | None = None,
    *,
    processor: Any = None,
    say: Say = lambda _: None,
) -> ExportResult:
    """Writes tower and head, each verified, with the card, a picture and its depth.

    Args:
        host: Any model that ``attach`` takes, on the CPU, in float32; it is only looked at.
        head: A head that fits its tower.
        folder: A new or empty one.
        settings: What to write.
        processor: As ``attach``: how the host prepares its pictures.
        say: Is told what is done, a line each.

    Raises:
        ExportError: The folder holds something; a format needs what this machine lacks; the host
            can't be written as one graph of constants; or a file differs from PyTorch. Nothing is
            written then.
        HeadMismatchError: As ``attach``.
        TowerNotFoundError: As ``attach``.
        HostError: It is not known how pictures are prepared, or the tower needs more than these.
        ImageError: The size is none that the tower takes.
    """
    settings = settings or ExportSettings()
    formats = [_format(name) for name in settings.formats]
    check_new(folder, ExportError, NEW_ALONE)
    for one in formats:
        one.check()
    plan = make_plan(host, head, processor, settings)
    picture = check_picture()
    pixels_B3HW, _ = frames([picture], plan.framing)
    files: dict[str, ExportedFile] = {}
    doubts: dict[str, tuple[str, ...]] = {}
    with new_files(folder, ExportError) as temporary:
        for reference, graph in zip(plan.references, plan.graphs, strict=True):
            say(f"exporting {graph.stem}")
            inputs = _inputs(plan, reference, pixels_B3HW[0])
            given = cast(inputs[0], graph.input_names, DTYPES[settings.dtype])
            exported = export_graph(graph, given, dynamic_batch=settings.dynamic_batch)
            for form in formats:
                written = form.write(exported, temporary, settings.onnx_opset)
                name = written.path.name
                say(f"verifying {name}")
                found = verify(written.run, reference, inputs, dtype=settings.dtype, file=name)
                files |= describe_files(written, exported, found, settings)
                if written.doubts:
                    doubts[name] = written.doubts
        picture.save(temporary / PICTURE_FILE)
        np.save(temporary / DEPTH_FILE, expected_depth(plan, picture).numpy())
        card = make_card(plan, files)
        (temporary / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return ExportResult(card, doubts)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ExportError(f"format {name}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]()


def _inputs(plan: Plan, reference: Graph, picture_3HW: Tensor) -> list[tuple[Tensor, ...]]:
    """What the files are verified on; the first is of one picture."""
    counts = (1, _BATCH) if plan.settings.dynamic_batch else (1,)
    with torch.no_grad():
        return [
            one
            for count in counts
            for one in example_inputs(reference, picture_3HW, plan.focal_px, count=count)
        ]
