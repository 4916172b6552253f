"""export(): its files and card, and what it refuses. Hosts and presets: test_export_hosts.py."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin import ClipDepthError, DepthHead, DepthTower
from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.errors import ExportError, HeadMismatchError, HostError, ImageError
from clipdepth_plugin.exporting.export import ExportResult, export
from clipdepth_plugin.exporting.format import FORMATS, Written
from clipdepth_plugin.exporting.graphs import Exported, Inputs, Run
from clipdepth_plugin.exporting.onnx_format import Onnx
from clipdepth_plugin.exporting.plan import ExportSettings
from clipdepth_plugin.exporting.verifying import verify
from clipdepth_plugin.files.pictures import load_image
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.runtime.card import Card
from tests.exporting.hosts import export_with, make_pair
from tests.tiny.case import pixels
from tests.tiny.heads import small_head
from tests.tiny.packed import PACKED
from tests.tiny.table import BY_NAME

SHOWN = Preprocessing(*HALF_NORMALISATION, (32, 32), "squash")


class InMemory:
    """A format that writes a name, and runs the program as it is, or changed."""

    change: Callable[[list[Tensor]], list[Tensor]] = staticmethod(lambda outputs: outputs)

    def check(self) -> None:
        pass

    def write(self, exported: Exported, folder: Path, opset: int) -> Written:
        path = folder / f"{exported.graph.stem}.memory"
        path.write_text("nothing")

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.no_grad():
                return type(self).change(list(exported.program.module()(*inputs)))

        return Written(path, run)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[InMemory]:
    """The format, by the name of its suffix."""
    form = type("Changed", (InMemory,), {})
    monkeypatch.setitem(FORMATS, "memory", form)
    return form


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    """An export of any number of pictures, in two formats; a head with a camera."""
    folder = tmp_path_factory.mktemp("made") / "export"
    settings = {"formats": ("onnx", "pt2"), "dynamic_batch": True, "host_name": "tiny"}
    return folder, export_with("dinov2", "fast", folder, **settings)


def test_the_card_says_what_is_in_the_folder(folder: tuple[Path, ExportResult]) -> None:
    path, result = folder
    card = Card.read(path / "depth.json")
    assert card == result.card
    assert {*card.files, "depth.json", "picture.png", "picture.depth.npy"} == {
        one.name for one in path.iterdir()
    }
    for name, file in card.files.items():
        assert file.sha256 == hashlib.sha256((path / name).read_bytes()).hexdigest()
        assert all(found.worst < 1e-4 for found in file.verified.values())
        assert file.verified.keys() == {port.name for port in file.outputs}
    assert (card.size, card.grid, card.canonical_focal) == ((32, 32), (4, 4), 37.3)
    assert (card.units, card.host, card.context) == ("metres", "tiny", "pooled")
    tower = card.files["tower_depth.onnx"]
    assert [port.shape for port in tower.inputs] == [("batch", 3, 32, 32), ("batch",)]
    assert [port.name for port in tower.outputs][-1] == "depth"
    assert tower.opset == 20
    names = [port.name for port in card.files["head.onnx"].inputs]
    assert names == [*map("level_{}".format, card.levels), "context", "focal_px"]
    assert not result.doubts
    assert all("--maxShapes=" in line and "focal_px:64" in line for line in result.engines)


def test_the_file_gives_the_depth_of_the_picture(folder: tuple[Path, ExportResult]) -> None:
    """By onnxruntime, in batches of other sizes; as predict gives it."""
    path, result = folder
    card, image = result.card, load_image(path / "picture.png")
    assert card.size is not None
    pixels_B3HW, (view,) = frames([image], card.preprocessing(card.size))
    session = onnxruntime.InferenceSession(path / "tower_depth.onnx")
    for count in (1, 5):
        focal_B = np.full(count, card.canonical_focal, np.float32)
        shown = np.repeat(pixels_B3HW.numpy(), count, axis=0)
        (depth,) = session.run(["depth"], {"pixel_values": shown, "focal_px": focal_B})
        depth_HW = view.to_image(torch.from_numpy(depth[-1]))[0]
        expected = torch.from_numpy(np.load(path / "picture.depth.npy"))
        torch.testing.assert_close(depth_HW, expected, rtol=0, atol=1e-4 * float(expected.max()))
    host, head, processor = make_pair("dinov2", "fast")
    (of_predict,) = PictureDepth(DepthPlugin(host, head, processor=processor))([image])
    torch.testing.assert_close(of_predict[0], expected, rtol=1e-4, atol=0)
    one_colour = np.full((1, 3, 32, 32), 0.25, np.float32)
    given = {"pixel_values": one_colour, "focal_px": focal_B[:1]}
    assert np.isnan(session.run(["depth"], given)[0]).all()


def test_the_host_is_left_as_it_is(tmp_path: Path, memory: type[InMemory]) -> None:
    host, head, _ = make_pair("dinov2", "fast")
    before = {name: x.clone() for name, x in host.state_dict().items()}
    settings = ExportSettings(formats=("memory",), dtype="bfloat16")
    result = export(host, head, tmp_path / "out", settings, processor=SHOWN)
    assert {port.dtype for port in result.card.files["head.memory"].outputs} == {"float32"}
    assert all(torch.equal(x, before[name]) for name, x in host.state_dict().items())
    assert not any(m._forward_hooks for m in host.modules())


def test_relative_depth_becomes_inverse_depth(tmp_path: Path, memory: type[InMemory]) -> None:
    host, head, _ = make_pair("dinov2", "guided", metric=False, confidence=False)
    settings = ExportSettings(formats=("memory",))
    card = export(host, head, tmp_path / "out", settings, processor=SHOWN).card
    assert card.units == "inverse depth"
    image = Image.open(tmp_path / "out/picture.png").convert("RGB")
    (depth,) = PictureDepth(DepthPlugin(host, head, processor=SHOWN))([image])
    inverse = np.load(tmp_path / "out/picture.depth.npy")
    assert np.abs(inverse * depth[0].numpy() - 1).mean() < 0.1


class Twice(nn.Module):
    """A graph of one output."""

    stem, input_names, output_names = "twice", ("x",), ("y",)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (2 * x,)


X = torch.randn(2, 3)
WRONG_RUNS: dict[str, tuple[Run, str, str]] = {
    "far": (lambda x: [2.001 * x[0]], "float32", "output y differs .* by 5.0e-04"),
    "far, of float16": (lambda x: [2.1 * x[0]], "float16", "more than the 1e-02"),
    "not finite": (lambda x: [x[0] / 0], "float16", "NaN or infinite .* overflow in float16"),
    "a shape": (lambda x: [x[0][:1]], "float32", r"output y is \(1, 3\), PyTorch's \(2, 3\)"),
    "an error": (lambda x: [x[0][9]], "float32", "can't be run on this machine"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_RUNS)
def test_a_file_that_differs_is_refused(wrong: str) -> None:
    run, dtype, message = WRONG_RUNS[wrong]
    graph: Any = Twice()
    exact = verify(lambda x: [2 * x[0]], graph, [(X,)], dtype=dtype, file="FILE")["y"]
    assert exact.worst < 1e-3
    assert exact.cosine == pytest.approx(1)
    with pytest.raises(ExportError, match=message):
        verify(run, graph, [(X,)], dtype=dtype, file="FILE")


def test_then_nothing_is_written(tmp_path: Path, memory: type[InMemory]) -> None:
    host, head, _ = make_pair("dinov2", "fast", canonical_focal=None)
    memory.change = staticmethod(lambda out: [*out[:-1], out[-1] * 1.01])
    with pytest.raises(ExportError, match=r"tower_depth.*output depth differs"):
        export(host, head, tmp_path / "a/b", ExportSettings(formats=("memory",)), processor=SHOWN)
    assert not list(tmp_path.iterdir())


def test_bfloat16_in_onnxruntime(tmp_path: Path) -> None:
    graph: Any = nn.Conv2d(3, 3, 1).bfloat16().requires_grad_(False)
    graph.stem, graph.input_names, graph.output_names = "conv", ("x",), ("y",)
    x = torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)
    exported = Exported(graph, torch.export.export(graph, (x,)), (x,), dynamic_batch=False)
    with pytest.raises(ExportError, match="onnxruntime can't run it on this machine"):
        Onnx().write(exported, tmp_path, 20)


def pair(name: str = "dinov2") -> tuple[nn.Module, DepthHead]:
    packed = {case.name: case for case in PACKED}
    host = (packed if name in packed else BY_NAME)[name].host()
    return host, small_head(host, preset="fast", channels=(8, 8, 8))


Make = Callable[[], tuple[nn.Module, DepthHead]]
REFUSED: dict[str, tuple[Make, dict[str, Any], type[ClipDepthError], str]] = {
    "dtype": (pair, {"dtype": "int8"}, ExportError, "expected one of float32"),
    "format": (pair, {"formats": ("tflite",)}, ExportError, "expected one of onnx, pt2"),
    "a size": (pair, {"size": (4, 4)}, ImageError, "4"),
    "no size": (pair, {"size": (0, 32)}, HostError, "size"),
    "another head": (
        lambda: (pair("stranger")[0], pair()[1]), {}, HeadMismatchError, "context"
    ),
    "packed": (
        lambda: pair("qwen2_vl"), {}, ExportError, "exports towers of whole pictures"
    ),
    "a fixed batch": (
        lambda: pair("llama4"), {"dynamic_batch": True}, ExportError, "a fixed number of pictures"
    ),
    "an opset of nothing": (
        pair, {"opset": 18, "formats": ("pt2",)}, ExportError, "nothing is written as ONNX"
    ),
    "an opset": (pair, {"opset": 17}, ExportError, "writes 18 to 23"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(tmp_path: Path, what: str) -> None:
    make, settings, error, message = REFUSED[what]
    host, head = make()
    with pytest.raises(error, match=message):
        export(host, head, tmp_path / "out", ExportSettings(**settings), processor=SHOWN)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ExportError, match=r"holds files \(mine.txt\)"):
        export(*pair(), tmp_path, processor=SHOWN)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_compiled_packages_are_run_before_they_are_called_done(tmp_path: Path) -> None:
    host, head = pair()
    export(host, head, tmp_path / "out", ExportSettings(formats=("aoti",)), processor=SHOWN)
    # export() has compared all outputs; these are the host's own, by torch's loader alone.
    compiled = torch._inductor.aoti_load_package(str(tmp_path / "out" / "tower_depth.aoti.pt2"))
    with torch.no_grad():
        seen, *_ = DepthTower(host, head).eval()(pixels(1, 1))
        found = compiled(pixels(1, 1))
    for got, expected in zip(found[: len(seen)], seen.values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder as builder

    def none() -> str:
        raise RuntimeError

    monkeypatch.setattr(builder, "get_cpp_compiler", none)
    with pytest.raises(ExportError, match="needs a C\\+\\+ compiler"):
        export(*pair(), tmp_path / "out", ExportSettings(formats=("aoti",)), processor=SHOWN)
