"""Each host once, each preset several times: exported, read again by onnxruntime, equal to PyTorch.

``python -m tests.scripts.export_table`` exports every host with every preset.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from clipdepth_plugin import DepthTower
from clipdepth_plugin.exporting.graphs import TowerGraph, cast, export_graph
from clipdepth_plugin.exporting.onnx_format import Onnx
from clipdepth_plugin.exporting.tensorrt import operators
from clipdepth_plugin.exporting.verifying import BOUNDS, DTYPES, example_inputs, verify
from tests.exporting.hosts import HOSTS, PRESETS, make_pair
from tests.scripts.export_table import DTYPES as TABLE_DTYPES
from tests.scripts.export_table import PAGE, region
from tests.tiny.case import pixels

COVERED = {
    "open_clip": ("spaceclip", "float32"), "hf_clip": ("fast", "float16"),
    "hf_siglip": ("guided", "float32"), "dinov2": ("spaceclip", "float16"),
    "dinov3": ("fast", "float32"), "timm": ("guided", "float16"),
    "llava": ("fast", "float32"), "paligemma": ("guided", "float32"),
    "smolvlm": ("spaceclip", "float32"), "demo": ("fast", "float32"),
}  # fmt: skip


def test_every_host_and_preset_is_covered() -> None:
    assert COVERED.keys() == HOSTS.keys()
    presets = [preset for preset, _ in COVERED.values()]
    assert all(presets.count(preset) > 1 for preset in PRESETS)


@pytest.mark.parametrize("name", COVERED)
def test_onnxruntime_gives_the_numbers_of_pytorch(name: str, tmp_path: Path) -> None:
    preset, dtype = COVERED[name]
    host, head, shown = make_pair(name, preset)
    example = torch.zeros(1, 3, *shown.size)
    reference = TowerGraph(DepthTower(host, head, example=example))
    graph = TowerGraph(DepthTower(host, head, example=example).to(DTYPES[dtype]))
    picture_3HW = pixels(1, 1, shown.size)[0]
    inputs = example_inputs(reference, picture_3HW, 30.0, count=1)
    given = cast(inputs[0], graph.input_names, DTYPES[dtype])
    exported = export_graph(graph, given, dynamic_batch=False)
    written = Onnx().write(exported, tmp_path, 20)
    assert not written.doubts
    found = verify(written.run, reference, inputs, dtype=dtype, file=name)
    assert found.keys() == set(reference.output_names)
    model = onnx.load(written.path)
    used = region(PAGE.read_text(encoding="utf-8"), "operators")[1]
    assert all(f"| `{operator}` |" in used for operator in operators(model)), "renew the page"
    if name == "demo":  # its position embeddings are resized once, at export
        assert "aten.upsample_bicubic2d.vec" not in str(exported.program.graph)


def test_the_page_has_every_export() -> None:
    """Below the bounds, every operator one of TensorRT's."""
    page = PAGE.read_text(encoding="utf-8")
    header, _, *rows = region(page, "exports")[1].strip().splitlines()
    columns = [cell.split() for cell in header.split(" | ")[1:]]
    assert [preset.strip("`") for preset, *_ in columns] == [
        p for p in PRESETS for _ in TABLE_DTYPES
    ]
    assert len(rows) == len(HOSTS)
    for row, title in zip(rows, HOSTS.values(), strict=True):
        first, *cells = row.strip("| ").split(" | ")
        assert first == title
        for (_, dtype, *_), cell in zip(columns, cells, strict=True):
            assert float(cell) <= BOUNDS[dtype]
    assert "| no |" not in region(page, "operators")[1]
