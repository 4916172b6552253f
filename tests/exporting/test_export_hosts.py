"""Each host once, each preset several times: exported, read again by onnxruntime, equal to PyTorch.

``python -m tests.scripts.export_table`` exports every host with every preset.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdepth_plugin.exporting.tensorrt import operators
from clipdepth_plugin.exporting.verifying import BOUNDS
from tests.exporting.hosts import HOSTS, PRESETS, verified_file
from tests.scripts.export_table import DTYPES as TABLE_DTYPES
from tests.scripts.export_table import PAGE, region

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
    file = verified_file(name, preset, dtype, tmp_path)
    assert not file.doubts
    used = region(PAGE.read_text(encoding="utf-8"), "operators")[1]
    assert all(f"| `{operator}` |" in used for operator in operators(file.model)), "renew the page"
    if name == "demo":  # its position embeddings are resized once, at export
        assert "aten.upsample_bicubic2d.vec" not in str(file.program.graph)


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
