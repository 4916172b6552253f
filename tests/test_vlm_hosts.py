"""VLMs and towers of transformers beyond the table in conftest: found, read right, not touched.

Each is a tiny random model from config, run as its own ``get_image_features`` runs its tower, so
that tiles, crops and several pictures in one prompt arrive there as they do in a prompt. Tiles
count as views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers

_V: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_T: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 99,
    "pad_token_id": 0,
}
_TILES: dict[str, Any] = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
_QFORMER = {**_T, "encoder_hidden_size": 32}
_OPT: dict[str, Any] = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32}
_PERCEIVER: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Case:
    """A host.

    Attributes:
        model: Class in transformers; its config's is named alike.
        tower: Path of its tower.
        prefix: Number of prefix tokens.
        options: Of the config, without vision and text.
        vision: (config class of its vision, options), or None where the host is the tower.
        text: (config class of its text, options), or None.
        views: Shape of its pictures before (3, 32, 32).
    """

    model: str
    tower: str
    prefix: int
    options: dict[str, Any]
    vision: tuple[str, dict[str, Any]] | None = None
    text: tuple[str, dict[str, Any]] | None = None
    views: tuple[int, ...] = (2,)

    def host(self) -> nn.Module:
        """The host with its fixed weights, in evaluation mode."""
        import transformers

        def make(part: tuple[str, dict[str, Any]]) -> Any:
            return getattr(transformers, part[0])(**part[1])

        options = dict(self.options)
        if self.vision is not None:
            options["vision_config"] = make(self.vision)
        if self.text is not None:
            options["text_config"] = make(self.text)
        stem = self.model
        for ending in ("ForConditionalGeneration", "WithProjection", "Model"):
            stem = stem.removesuffix(ending)
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(getattr(transformers, f"{stem}Config")(**options))
        return cast("nn.Module", model.eval())

    def run(self, host: Any, pixels: Tensor) -> list[Tensor]:
        """Runs the host's vision; all of its tensors."""
        if self.vision is None:
            out = host(pixels)
        else:
            tiled = "image_grid_pinpoints" in self.options
            sizes = {"image_sizes": torch.tensor([[32, 64], [64, 32]])} if tiled else {}
            out = host.get_image_features(pixels, **sizes)
        return _tensors(out)


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if hasattr(out, "values") else out
    return [x for value in values if value is not None for x in _tensors(value)]


_CLIP, _SIGLIP = ("CLIPVisionConfig", _V), ("SiglipVisionConfig", _V)
_LLAMA, _QWEN2 = ("LlamaConfig", _T), ("Qwen2Config", _T)
_IMAGE: dict[str, Any] = {"image_token_index": 90}
_TILED: dict[str, Any] = {**_IMAGE, **_TILES}
_VISION_TOWER, _VISION_MODEL = "model.vision_tower", "model.vision_model"
_SHUFFLE: dict[str, Any] = {"scale_factor": 2, "image_token_id": 90}

CASES = (
    Case("ViTModel", "", 1, _V),
    Case("DINOv3ViTModel", "", 5, {**_V, "num_register_tokens": 4}),
    Case("CLIPVisionModelWithProjection", "vision_model", 1, _V),
    Case("LlavaNextForConditionalGeneration", _VISION_TOWER, 1, _TILED, _CLIP, _LLAMA, (2, 3)),
    Case(
        "LlavaNextVideoForConditionalGeneration",
        *(_VISION_TOWER, 1, {**_TILED, "video_token_index": 91}, _CLIP, _LLAMA, (2, 3)),
    ),
    Case(
        "VipLlavaForConditionalGeneration",
        *(_VISION_TOWER, 1, {**_IMAGE, "vision_feature_layers": [-2, -3, 1]}, _CLIP, _LLAMA),
    ),
    Case(
        "LlavaOnevisionForConditionalGeneration",
        *(_VISION_TOWER, 0, {**_TILED, "video_token_index": 91}, _SIGLIP, _QWEN2, (2, 3)),
    ),
    Case(
        "AyaVisionForConditionalGeneration",
        *(_VISION_TOWER, 0, _IMAGE, _SIGLIP, ("Cohere2Config", _T)),
    ),
    Case(
        "Gemma3ForConditionalGeneration",
        *(_VISION_TOWER, 0, {**_IMAGE, "mm_tokens_per_image": 4}),
        ("SiglipVisionConfig", {**_V, "vision_use_head": False}),
        ("Gemma3TextConfig", {**_T, "head_dim": 8}),
    ),
    Case(
        "Idefics2ForConditionalGeneration",
        *(_VISION_MODEL, 0, {"perceiver_config": _PERCEIVER, "image_token_id": 90}),
        *(("Idefics2VisionConfig", _V), ("MistralConfig", _T), (1, 2)),
    ),
    Case(
        "Idefics3ForConditionalGeneration",
        *(_VISION_MODEL, 0, _SHUFFLE, ("Idefics3VisionConfig", _V), _LLAMA, (1, 2)),
    ),
    Case(
        "SmolVLMForConditionalGeneration",
        *(_VISION_MODEL, 0, _SHUFFLE, ("SmolVLMVisionConfig", _V), _LLAMA, (1, 2)),
    ),
    Case(
        "InternVLForConditionalGeneration",
        *(_VISION_TOWER, 1, {"image_token_id": 90}),
        ("InternVLVisionConfig", {**_V, "image_size": [32, 32], "patch_size": [8, 8]}),
        _QWEN2,
    ),
    Case(
        "Blip2ForConditionalGeneration",
        *("vision_model", 1, {**_IMAGE, "num_query_tokens": 4, "qformer_config": _QFORMER}),
        ("Blip2VisionConfig", _V),
        ("OPTConfig", {**_T, **_OPT}),
    ),
)


@pytest.fixture(params=CASES, ids=lambda case: case.model)
def vlm(request: pytest.FixtureRequest) -> Case:
    """Every host in turn."""
    return cast("Case", request.param)


def hooks(host: nn.Module) -> dict[str, int]:
    """Module -> number of its hooks."""
    tables = {name: vars(module) for name, module in host.named_modules()}
    return {
        name: sum(
            len(value)
            for key, value in table.items()
            if "_hooks" in key and isinstance(value, dict)
        )
        for name, table in tables.items()
    }


def test_found_read_and_left_as_it_was(
    vlm: Case, make_head: Callable[..., DepthHead], make_pixels: Callable[..., Tensor]
) -> None:
    host = vlm.host()
    (tower,) = find_towers(host)
    assert (tower.path, tower.depth, tower.width, tower.grid) == (vlm.tower, 4, 32, (4, 4))
    assert tower.num_prefix_tokens == vlm.prefix
    head = make_head(
        host, context="mean", semantic_levels=(4, 3, 2, 1), structural_levels=(2, 1, 0)
    )
    count = torch.Size(vlm.views).numel()
    views_B3HW = make_pixels(batch=count)
    pixels = views_B3HW.reshape(*vlm.views, 3, 32, 32)
    with torch.no_grad():
        alone = vlm.run(host, pixels)  # transformers puts hooks of its own on, on first use
        tower_any: Any = tower.module
        library = tower_any(pixel_values=views_B3HW, output_hidden_states=True).hidden_states
        before = hooks(host)
        with attach(host, head) as plugin:
            with plugin.capture() as seen:
                beside = vlm.run(host, pixels)
            (tower_pass,) = seen
            features = tower_pass.features
            depth = plugin.depth
        assert hooks(host) == before
        after = vlm.run(host, pixels)
    assert alone
    for outputs in (beside, after):
        assert len(outputs) == len(alone)
        assert all(torch.equal(one, other) for one, other in zip(alone, outputs, strict=True))
    for level, tokens_BND in features.levels.items():
        expected = library[level][:, vlm.prefix :]
        torch.testing.assert_close(tokens_BND, expected, rtol=0, atol=1e-6, msg=f"level {level}")
    assert depth.shape == (count, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plugin(views_B3HW), depth, rtol=0, atol=1e-5)
