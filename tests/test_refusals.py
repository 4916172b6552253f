"""Models without a tower: the error says what was looked for, what is there, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.errors import TowerNotFoundError
from tests.tiny.case import TEXT, VISION
from tests.tiny.hf_towers import make


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return build


def _open_clip_resnet() -> nn.Module:
    import open_clip

    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    vision = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    return cast("nn.Module", open_clip.CLIP(16, vision, text))


def _florence2() -> nn.Module:
    import transformers

    four: dict[str, Any] = {"depths": (1,) * 4, "num_heads": (2,) * 4, "num_groups": (2,) * 4}
    vision = transformers.Florence2VisionConfig(
        embed_dim=(8, 16, 16, 32), projection_dim=16, **four
    )
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    text: dict[str, Any] = {
        "model_type": "bart",
        "d_model": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": 99,
    }
    config = transformers.Florence2Config(
        vision_config=vision, text_config={**text, **heads, **layers}, image_token_id=5
    )
    return transformers.Florence2ForConditionalGeneration(config)


class _FastVlm(nn.Module):
    """FastVLM's layout: a FastViT beside a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower = _timm("fastvit_t8", num_classes=0)()
        self.model.language_model = make("LlamaModel", **TEXT)


class _Packs(nn.Module):
    """As MiniCPM-V's: a convolution, and pictures of all sizes in one row."""

    def __init__(self) -> None:
        super().__init__()
        tower = make("SiglipVisionModel", **VISION)
        inner: Any = getattr(tower, "vision_model", tower)  # before transformers 5.6
        self.stem, self.blocks = nn.Conv2d(3, 32, 8, 8), inner.encoder.layers

    def forward(self, pixels: Tensor, tgt_sizes: Tensor) -> Tensor:
        raise NotImplementedError(tgt_sizes)


def _on_meta(name: str) -> Callable[[], nn.Module]:
    """A model of transformers by its default config, without weights."""

    def build() -> nn.Module:
        import transformers

        kind: Any = getattr(transformers, name, None)
        if kind is None:
            pytest.skip(f"transformers {transformers.__version__} lacks {name}")
        with torch.device("meta"):
            return cast("nn.Module", kind(kind.config_class()))

    return build


def _patches_into_words() -> nn.Module:
    """As Gemma 4's unified one: patches are projected into a language model."""
    host = nn.Module()
    host.embed, host.words = nn.Conv2d(3, 64, 8, 8), make("LlamaModel", **TEXT)
    return host


_SAM = {"output_channels": 8, "global_attn_indexes": [1], "window_size": 2}
_QFORMER = {**TEXT, "encoder_hidden_size": 32}
_FOUR = {"depths": (1, 1, 1, 1)}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "resnet": (
        _timm("resnet18"),
        (r"\(the host itself\) is a convolutional tower \(ResNet: .* 7 x 7 at conv1",),
    ),
    "open_clip_resnet": (
        _open_clip_resnet,
        ("visual is .*ModifiedResNet", r"transformer\.resblocks \(depth 2, width 32\)"),
    ),
    "convnext": (
        _timm("convnext_atto"),
        ("stem.0 feeds no list of attention blocks", "is a convolutional tower"),
    ),
    "swin": (
        _timm("swin_tiny_patch4_window7_224", **_FOUR),
        (
            "patch_embed.proj gives width 96.*have 96, 192, 384, 768: a hierarchical tower",
            r"layers\.0\.blocks \(depth 1, width 96\)",
        ),
    ),
    "davit": (
        _timm("davit_tiny", **_FOUR),
        (r"is a hierarchical tower with attention \(DaVit.* widths 96 to 768",),
    ),
    "florence2": (
        _florence2,
        (
            "model.vision_tower is a hierarchical tower",
            r"model\.language_model\.encoder\.layers \(depth 1, width 16\)",
        ),
    ),
    "packed": (
        lambda: nn.ModuleDict({"vpm": _Packs()}),
        (r"vpm\.stem feeds a tower that needs tgt_sizes, which says how its tokens are packed",),
    ),
    "fastvit": (_timm("fastvit_t8"), (r"a convolutional tower \(FastVit",)),
    "fastvlm": (
        _FastVlm,
        (
            r"model\.vision_tower is a convolutional tower \(FastVit",
            r"model\.language_model\.layers \(depth 2, width 32\)",
        ),
    ),
    "sam": (
        lambda: make("SamVisionModel", **VISION, **_SAM),
        ("patch_embed.projection feeds blocks that attend within windows of maps",),
    ),
    "qformer": (
        lambda: make("Blip2QFormerModel", **_QFORMER),
        ("no convolution .* by: a part of a model that takes query_embeds .a Q-Former",),
    ),
    "language_model": (
        lambda: make("LlamaForCausalLM", **TEXT),
        (r"model\.layers \(depth 2, width 32\)", "no convolution .*: a language model"),
    ),
    "words_and_patches": (
        _on_meta("LayoutLMv3Model"),
        ("patch_embed.proj feeds no list", r"itself\) reads words, too \(input_ids\): these share"),
    ),
    "t5_blocks": (
        _on_meta("UdopModel"),
        (r"encoder\.block has 24 UdopBlock", r"itself\) reads words, too \(input_ids\)"),
    ),
    "words_beside_a_convolutional_tower": (
        lambda: nn.ModuleDict(
            {"vision": _timm("convnext_atto")(), "text": make("BertModel", **TEXT)}
        ),
        (r"vision is a convolutional tower \(ConvNeXt", r"text\.encoder\.layer has 2 BertLayer"),
    ),
    "latents": (
        _on_meta("PerceiverModel"),
        (r"takes inputs", r"self_attends works on learnt latents \(embeddings\.latents\)"),
    ),
    "single_pixels": (
        _on_meta("PerceiverForImageClassificationLearned"),
        ("1 x 1 at .*convnet_1x1.*no patch embedding: it maps single pixels", "learnt latents"),
    ),
    "detector": (
        _on_meta("DFineModel"),
        (r"Found instead: backbone\.model is a convolutional tower \(HGNetV2Backbone",),
    ),
    "overlapping_stem": (
        _on_meta("HieraModel"),
        (r"stride 4 x 4 at .*no patch embedding: its windows overlap",),
    ),
    "convolutional_attention": (
        _on_meta("MobileViTV2Model"),
        (r"itself\) is a hierarchical tower with attention \(MobileViTV2Model",),
    ),
    "one_width_behind_convolutions": (
        _timm("xcit_nano_12_p8_224", depth=2),
        (r"itself\) is a tower with attention, whose blocks no patch embedding feeds \(Xcit",),
    ),
    "linear_embedding": (
        _timm("naflexvit_base_patch16_gap", depth=1),
        ("embeds.proj maps 768 numbers to 768: patches cut before",),
    ),
    "patches_into_a_language_model": (
        _patches_into_words,
        ("gives width 64, the attention blocks near it have 32: none of them is its own",),
    ),
    "neither": (lambda: nn.Linear(3, 3), ("no convolution .*: no vision model",)),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_what_was_found(name: str, head: DepthHead) -> None:
    build, found = CASES[name]
    host = build()
    with pytest.raises(TowerNotFoundError, match="Looked for a list of like attention") as refused:
        attach(host, head)
    for pattern in found:
        refused.match(pattern)
    refused.match(r"tower='path\.to\.it'; docs/extending\.md")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.modules())
