"""Rows of hosts whose towers cut pictures by a linear map, or have tokens behind their patches."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from tests.tiny.case import IMAGE_TOKEN, TEXT, VISION, HostCase, hidden_states, tensors
from tests.tiny.hf_towers import make
from tests.tiny.vlms import Prompts, vlm

_RADIO: dict[str, Any] = {
    "mlp_ratio": 2.0,
    "max_img_size": 64,
    "num_cls_tokens": 2,
    "num_registers": 3,
    # Pictures as they are: what is normalised outside.
    "norm_mean": [0.0, 0.0, 0.0],
    "norm_std": [1.0, 1.0, 1.0],
}


def radio() -> Any:
    """A tiny RADIO."""
    vision = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return make("RadioModel", **vision, **_RADIO)


def _run(host: Any, x: Tensor) -> list[Tensor]:
    return tensors(host(pixel_values=x))


_LLAMA4_TEXT: dict[str, Any] = {
    **TEXT,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": 64,
}
_LLAMA4_VISION: dict[str, Any] = {
    **VISION,
    "intermediate_size": 128,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
_LLAMA4 = vlm(
    *("llama4", "Llama4ForConditionalGeneration"),
    title="Llama 4",
    tower="vision_model",
    family="hf_llama4",
    prefix=0,
    contexts=("cls", "mean"),
    vision=_LLAMA4_VISION,
    text=_LLAMA4_TEXT,
    options={"image_token_index": IMAGE_TOKEN},
    prompts=Prompts([[4], [4]]),
)


def _run_llama4(host: Any, x: Tensor) -> list[Tensor]:
    # The forward of transformers 5.24, and so generate(), fails without us (image_outputs).
    strategy = "vision_feature_select_strategy"  # an argument of older releases
    asked = strategy in inspect.signature(host.get_image_features).parameters
    return tensors(host.get_image_features(x, **({strategy: "default"} if asked else {})))


STEMS: tuple[HostCase, ...] = (
    replace(_LLAMA4, class_token=-1, run=_run_llama4, inputs=None),
    HostCase(
        name="radio",
        title="RADIO",
        build=radio,
        tower="",
        family="hf_radio",
        prefix=5,
        contexts=("cls", "mean"),
        run=_run,
        levels=hidden_states,
        needs="RadioModel",
    ),
    HostCase(
        name="yolos",
        title="YOLOS",
        build=partial(
            make, "YolosModel", **{**VISION, "image_size": [32, 32]}, num_detection_tokens=3
        ),
        tower="",
        family="hf_yolos",
        prefix=1,
        contexts=("cls", "mean"),
        run=_run,
        levels=hidden_states,
        needs="YolosModel",
    ),
)
