"""Tiny random models of each class of AutoModelForDepthEstimation, saved in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as _transformers
from transformers import AutoModelForDepthEstimation

transformers: Any = _transformers  # its configs are typed too narrowly

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
NECK: dict[str, Any] = {
    "reassemble_factors": [2, 1],
    "neck_hidden_sizes": [8, 8],
    "fusion_hidden_size": 8,
}
SQUARE = {"height": 32, "width": 32}


def _dinov2(**options: Any) -> Any:
    return transformers.Dinov2Config(
        **{**VIT, "mlp_ratio": 2, "patch_size": 8, "image_size": 32, "out_indices": [1, 2]},
        **{"reshape_hidden_states": False, "apply_layernorm": False, **options},
    )


def _depth_anything(**options: Any) -> Any:
    return transformers.DepthAnythingConfig(
        backbone_config=_dinov2(),
        patch_size=8,
        reassemble_hidden_size=16,
        head_hidden_size=8,
        **NECK,
        **options,
    )


def _prompt_depth_anything() -> Any:
    return transformers.PromptDepthAnythingConfig(
        backbone_config=_dinov2(),
        patch_size=8,
        reassemble_hidden_size=16,
        head_hidden_size=8,
        **NECK,
    )


def _dpt(**options: Any) -> Any:
    return transformers.DPTConfig(
        **VIT, image_size=32, patch_size=8, backbone_out_indices=[0, 1], **NECK, **options
    )


def _dpt_dinov2(**options: Any) -> Any:
    wide = {**NECK, "fusion_hidden_size": 256}  # the projection has 256 channels
    return transformers.DPTConfig(
        backbone_config=_dinov2(), **wide, use_bias_in_fusion_residual=False, **options
    )


def _depth_pro(**options: Any) -> Any:
    tower = {**VIT, "mlp_ratio": 2, "patch_size": 4, "image_size": 16}
    return transformers.DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[8, 8],
        num_fov_head_layers=0,
        **{
            f"{part}_model_config": {"model_type": "dinov2", **tower}
            for part in ("image", "patch", "fov")
        },
        **options,
    )


def _glpn() -> Any:
    return transformers.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=8,
        max_depth=12,
    )


def _zoedepth(heads: int, **options: Any) -> Any:
    beit = transformers.BeitConfig(
        **{**VIT, "num_hidden_layers": 4},
        image_size=32,
        patch_size=8,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    bins = [
        {"name": name, "n_bins": 8, "min_depth": 1e-3, "max_depth": far}
        for name, far in (("nyu", 10.0), ("kitti", 80.0))
    ]
    several: dict[str, Any] = {
        "num_patch_transformer_layers": 4,
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 8,
        "patch_transformer_num_attention_heads": 2,
    }
    return transformers.ZoeDepthConfig(
        backbone_config=beit,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        num_relative_features=8,
        num_attractors=[4, 2, 1, 1],
        bottleneck_features=8,
        bin_embedding_dim=8,
        bin_configurations=bins[:heads],
        **(several if heads > 1 else {}),
        **options,
    )


def _tipsv2() -> Any:
    backbone = {"model_type": "tipsv2_vision_model", **VIT, "image_size": 32, "patch_size": 8}
    return transformers.Tipsv2DptConfig(
        backbone_config={**backbone, "out_indices": [1, 2], "reshape_hidden_states": False},
        **NECK,
        num_depth_bins=8,
    )


def _chmv2() -> Any:
    backbone = {**VIT, "model_type": "dinov3_vit", "image_size": 32, "patch_size": 8}
    backbone["num_register_tokens"] = 2
    return transformers.CHMv2Config(
        backbone_config={**backbone, "out_indices": [1, 2], "reshape_hidden_states": True},
        patch_size=8,
        reassemble_factors=[2, 1],
        post_process_channels=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        number_output_channels=8,
    )


CONFIGS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "depth_anything": (
        lambda: _depth_anything(depth_estimation_type="relative"),
        "DPTImageProcessor",
        {"size": SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 8},
    ),
    "depth_anything_metric": (
        lambda: _depth_anything(depth_estimation_type="metric", max_depth=20),
        "DPTImageProcessor",
        {"size": SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 8},
    ),
    "depth_pro": (
        lambda: _depth_pro(use_fov_model=True),
        "DepthProImageProcessor",
        {"size": SQUARE},
    ),
    "depth_pro_no_view": (
        lambda: _depth_pro(use_fov_model=False),
        "DepthProImageProcessor",
        {"size": SQUARE},
    ),
    "dpt": (_dpt, "DPTImageProcessor", {"size": SQUARE}),
    "dpt_dinov2": (lambda: _dpt_dinov2(add_projection=True), "DPTImageProcessor", {"size": SQUARE}),
    "dpt_unknown": (_dpt_dinov2, "DPTImageProcessor", {"size": SQUARE}),
    "glpn": (_glpn, "GLPNImageProcessor", {}),
    "tipsv2_dpt": (_tipsv2, "Tipsv2DptImageProcessor", {"size": SQUARE}),
    "zoedepth": (lambda: _zoedepth(1), "ZoeDepthImageProcessor", {"size": SQUARE}),
    "zoedepth_normed": (
        lambda: _zoedepth(1, bin_centers_type="normed"),
        "ZoeDepthImageProcessor",
        {"size": SQUARE},
    ),
    "zoedepth_two": (lambda: _zoedepth(2), "ZoeDepthImageProcessor", {"size": SQUARE}),
    "chmv2": (_chmv2, "CHMv2ImageProcessor", {"size": SQUARE}),
    "prompt_depth_anything": (
        _prompt_depth_anything,
        "PromptDepthAnythingImageProcessor",
        {"size": SQUARE},
    ),
}
"""Name -> config, image processor and its options."""


def save_model(name: str, folder: Path) -> str:
    """Saves model and image processor; the folder's path."""
    make, processor, options = CONFIGS[name]
    torch.manual_seed(0)
    model: Any = AutoModelForDepthEstimation.from_config(make())
    with torch.no_grad():  # the initial weights give almost one depth all over
        for x in model.parameters():
            if x.ndim > 1:
                x.normal_(0, x[0].numel() ** -0.5)
        for key, x in model.named_parameters():
            if key.endswith("bias") and x.numel() == 1:  # few zeros behind the last ReLU; degrees
                x.fill_(60.0 if "fov" in key else 2.0)
    model.save_pretrained(folder)
    getattr(transformers, processor)(**options).save_pretrained(folder)
    return str(folder)
