"""ONNX files as depth sources, with depth.json beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.labelling.source import Picture, open_source

SAID: dict[str, Any] = {"units": "metres", "mean": [0.4] * 3, "std": [0.2] * 3}
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def write(
    folder: Path,
    shape: tuple[Any, ...] = ("n", 3, "h", "w"),
    kind: int = FLOAT,
    nodes: str = "mean",
    **said: Any,
) -> str:
    """A network whose depth is exp of the pixels' mean over the colours, and its depth.json."""
    kept = int(nodes == "kept")
    steps = [helper.make_node("ReduceMean", ["pixels"], ["grey"], axes=[1], keepdims=kept)]
    last = {"mean": "Exp", "kept": "Exp", "negative": "Neg", "nan": "Sqrt"}[nodes]
    steps.append(helper.make_node(last, ["grey"], ["depth"]))
    graph = helper.make_graph(
        steps,
        "depth",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("depth", kind, None)],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "depth.json").write_text(json.dumps({**SAID, **said}))
    return f"onnx:{folder / 'model.onnx'}"


def picture(seed: int, height: int, width: int, focal: float | None = None) -> Picture:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    camera = (focal, focal, width / 2, height / 2) if focal else None
    return Picture(f"seq/{seed}", np.asarray(small.resize((width, height))), camera)


PICTURES = [picture(0, 40, 56), picture(1, 33, 20), picture(2, 40, 56)]


@pytest.mark.parametrize(
    ("shape", "kind", "nodes", "said"),
    [
        (("n", 3, "h", "w"), FLOAT, "mean", {"size": [16, 24]}),
        (("n", 3, 16, 24), FLOAT, "kept", {}),
        ((1, 3, 16, 24), FLOAT, "mean", {"interpolation": "bilinear"}),
        ((2, 3, 16, 24), FLOAT, "kept", {"size": [16, 24]}),
        ((5, 3, 16, 24), FLOAT, "mean", {}),
        (("n", 3, 16, 24), HALF, "kept", {}),
        (("n", 3, 16, 16), FLOAT, "mean", {"resize": "pad"}),
        (("n", 3, 16, 16), FLOAT, "mean", {"resize": "shortest", "resize_to": 20}),
    ],
)
def test_labels_are_its_output_in_the_picture(
    shape: tuple[Any, ...], kind: int, nodes: str, said: dict[str, Any], tmp_path: Path
) -> None:
    source = open_source(write(tmp_path, shape, kind, nodes, **said))
    size = said.get("size", shape[2:])
    rest = {key: said[key] for key in ("interpolation", "resize_to") if key in said}
    resize = said.get("resize", "squash")
    shown = Preprocessing((0.4,) * 3, (0.2,) * 3, tuple(size), resize, **rest)
    for one, label in zip(PICTURES, source.label(PICTURES), strict=True):
        pixels_13HW, (view,) = frames([Image.fromarray(one.image_HW3)], shown)
        expected_HW = view.to_image(pixels_13HW.mean(1).exp())[0]
        assert label.depth_HW.shape == one.image_HW3.shape[:2]
        tolerance = 1e-2 if kind == HALF else 1e-5
        np.testing.assert_allclose(label.depth_HW, expected_HW, rtol=tolerance)
        np.testing.assert_allclose(label.depth_HW, source.label([one])[0].depth_HW, rtol=1e-5)
        assert np.isnan(label.depth_HW).any() == (resize == "shortest")


def test_a_canonical_focal_length_scales_metres(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, size=[20, 28], canonical_focal=7.0, max_depth=9))
    assert source.card.reads_focal
    assert source.card.max_depth is None  # it depends on the lens
    known, blind = source.label([picture(0, 40, 56, focal=28.0), picture(0, 40, 56)])
    np.testing.assert_allclose(known.depth_HW, blind.depth_HW * 2, rtol=1e-6)
    with pytest.raises(SourceError, match=r"seq/1: a camera .* as no lens does"):
        source.label([picture(1, 40, 56, focal=0.01)])


def test_units_and_what_is_no_depth(tmp_path: Path) -> None:
    metres = open_source(write(tmp_path, nodes="negative", size=[40, 56]))
    (label,) = metres.label(PICTURES[:1])
    nothing = np.isnan(label.depth_HW)
    assert 0 < nothing.mean() < 1
    assert (label.depth_HW[~nothing] > 0).all()
    inverse = open_source(write(tmp_path, nodes="negative", size=[40, 56], units="inverse depth"))
    assert inverse.card.units == "inverse depth"
    assert not np.isnan(inverse.label(PICTURES[:1])[0].depth_HW).any()
    broken = open_source(write(tmp_path, nodes="nan", size=[40, 56]))
    with pytest.raises(SourceError, match="seq/0: depth is NaN or infinite"):
        broken.label(PICTURES)


def test_the_version_is_that_of_network_and_card(tmp_path: Path) -> None:
    one = open_source(write(tmp_path, size=[16, 16])).card.version
    assert open_source(write(tmp_path, size=[16, 16])).card.version == one
    assert open_source(write(tmp_path, size=[16, 24])).card.version != one
    assert open_source(write(tmp_path, nodes="kept", size=[16, 16])).card.version != one


@pytest.mark.parametrize(
    ("shape", "said", "message"),
    [
        (("n", 3, "h", "w"), {}, r'no fixed size: .*say "size": \[height, width\] in depth.json'),
        (("n", 3, 16, 16), {"size": [16, 24]}, r"its input is \[16, 16\], but depth.json says"),
        (("n", 4, 16, 16), {}, r"expected one input of floats \(N, 3, H, W\)"),
        (("n", 3, 16), {}, "expected one input"),
        (
            ("n", 3, 16, 16),
            {"units": "feet"},
            "units: got 'feet', expected metres",
        ),
        (("n", 3, 16, 16), {"std": [0, 1, 1]}, "3 finite positive numbers"),
        (("n", 3, 16, 16), {"resize": "stretch"}, "resize"),
        (("n", 3, 16, 16), {"resize_to": 9}, "resize_to: does nothing"),
        (("n", 3, 16, 16), {"focal": 9}, "focal: no such field"),
        (
            ("n", 3, 16, 16),
            {"units": "inverse depth", "canonical_focal": 9},
            "canonical_focal: does nothing with units: inverse depth",
        ),
    ],
)
def test_files_that_are_refused(
    shape: tuple[Any, ...], said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(write(tmp_path, shape, **said))


def test_without_a_card_it_is_said_what_to_write(tmp_path: Path) -> None:
    name = write(tmp_path)
    (tmp_path / "depth.json").unlink()
    with pytest.raises(SourceError, match=r'write one, such as {"units": "metres", "mean"'):
        open_source(name)


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    name = write(tmp_path, size=[16, 16])
    with pytest.raises(SourceError, match="takes float32; leave dtype out"):
        open_source(name, dtype="float16")
    (tmp_path / "model.onnx").write_bytes(b"x" * 50)
    with pytest.raises(SourceError, match="can't be opened"):
        open_source(name)
    (tmp_path / "depth.json").write_text("{")
    with pytest.raises(SourceError, match="not valid JSON"):
        open_source(name)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SourceError, match="the package onnxruntime is not installed"):
        open_source(write(tmp_path, size=[16, 16]))


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    name = write(tmp_path, size=[16, 16])
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[0].attribute[0].ints[:] = [1, 2]
    onnx.save(model, tmp_path / "model.onnx")
    source = open_source(name)
    with pytest.raises(SourceError, match=r"gave float32 \(1, 16\) for \(1, 3, 16, 16\)"):
        source.label([PICTURES[0]])
