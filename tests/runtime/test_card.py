"""depth.json: what is read is what was written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.errors import ExportError, SourceError
from clipdepth_plugin.runtime import Card
from clipdepth_plugin.runtime.card import Agreement, Check, ExportedFile, MadeBy, Port, Provenance

LEAST: dict[str, Any] = {"units": "metres", "mean": [0.4] * 3, "std": [0.2] * 3}
HASH = "0" * 64
WHOLE = Card(
    format="clipdepth-export/1",
    units="metres",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.2, 0.2),
    size=(32, 48),
    resize="shortest",
    resize_to=36,
    crop_half="down",
    interpolation="bilinear",
    canonical_focal=50.0,
    max_depth=10.0,
    licence="MIT",
    files={
        "tower_depth.onnx": ExportedFile(
            sha256=HASH,
            inputs=(Port(name="pixel_values", dtype="float32", shape=("batch", 3, 32, 48)),),
            outputs=(Port(name="depth", dtype="float32", shape=("batch", 1, 32, 48)),),
            opset=18,
            dtype="float32",
            verified={"depth": Agreement(worst=1e-6, cosine=1.0)},
        )
    },
    grid=(2, 3),
    levels=(0, 4),
    context="pooled",
    confidence=True,
    check=Check(picture="a.png", depth="a.npy", focal_px=40.0),
    host="demo",
    head="demo",
    tower_hashes={"float32": "ab"},
    provenance=Provenance(data=("KITTI",), licence="MIT", notes="none"),
    made_by=MadeBy(version="1", torch="2", onnx="1.22", date="2026-11-30"),
)


def write(folder: Path, card: Any) -> Path:
    path = folder / "depth.json"
    path.write_text(card if isinstance(card, str) else json.dumps(card))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert Card.read(write(tmp_path, WHOLE.to_json())) == WHOLE
    least = Card.read(write(tmp_path, LEAST))
    assert Card.read(write(tmp_path, least.to_json())) == least
    said = {"resize": "squash", "crop_half": "even", "interpolation": "bicubic"}
    assert json.loads(least.to_json()) == {**LEAST, **said, "confidence": False}


FILE = {"sha256": HASH}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit": "metres"}, "unit: no such field; did you mean units"),
        ({"units": None}, "units: got None, expected metres or inverse depth"),
        ({"units": ["metres"]}, "units: got"),
        ({"mean": [0.4, 0.4]}, "mean: got .*3 finite numbers"),
        ({"mean": [float("nan")] * 3}, "mean: got"),
        ({"mean": "0.4"}, "mean: got"),
        ({"std": [0, 1, 1]}, "std: .*positive"),
        ({"size": [0, 4]}, "size: got"),
        ({"size": [10**9, 10**9]}, "size: got"),
        ({"size": True}, "size: got True"),
        ({"resize": "stretch"}, "resize: got 'stretch', expected squash or shortest"),
        ({"resize": None}, "resize: got None"),
        ({"resize_to": 40}, "resize_to: does nothing"),
        ({"canonical_focal": -1}, "canonical_focal: got -1"),
        ({"units": "inverse depth", "max_depth": 3}, "max_depth: does nothing with units"),
        ({"format": "clipdepth-export/9"}, "format: got 'clipdepth-export/9'"),
        ({"confidence": 1}, "confidence: got 1, expected true or false"),
        ({"levels": [1.5]}, r"levels\[0\]: got 1.5"),
        ({"levels": {}}, "levels: got {}, expected a list"),
        ({"files": []}, r"files: got \[\], expected a mapping"),
        ({"files": {"../x": FILE}}, "files, a key: got '../x', expected the name of a file"),
        ({"files": {"x": {}}}, "files.x.sha256: must be given"),
        ({"files": {"x": {"sha256": "1"}}}, "files.x.sha256: got '1', expected 64"),
        ({"files": {"x": {**FILE, "sha1": 1}}}, "files.x.sha1: no such field"),
        ({"files": {"x": {**FILE, "inputs": [{"name": "x"}]}}}, r"files.x.inputs\[0\].dtype: must"),
        (
            {"files": {"x": {**FILE, "verified": {"depth": {"worst": 1, "cosine": 7}}}}},
            "files.x.verified.depth.cosine: got 7",
        ),
        ({"check": {"picture": "/etc/passwd", "depth": "a"}}, "check.picture: got '/etc/passwd'"),
        ({"check": {"picture": "a", "depth": "a", "tolerance": "1"}}, "check.tolerance: got '1'"),
        ({"made_by": {"version": 1}}, "made_by.version: got 1, expected a text"),
        ({"provenance": {"data": "KITTI"}}, "provenance.data: got 'KITTI', expected a list"),
        ({"tower_hashes": {"float32": 1}}, "tower_hashes.float32: got 1"),
    ],
)
def test_fields_that_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**LEAST, **given})
    with pytest.raises(SourceError, match=rf"depth\.json: {message}"):
        Card.read(path, SourceError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"it: got \[\], expected a mapping"),
        ("{}", "units: must be given"),
        ("{", "not valid JSON"),
        ('{"units": "metres", "units": "metres"}', "given twice"),
        ("[" * 100_000, "nested deeper"),
        (" " * (5 << 20), "larger than"),
    ],
)
def test_files_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        Card.read(write(tmp_path, content))


def test_a_missing_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r'write one, such as {"units": "metres"'):
        Card.read(tmp_path / "depth.json")
