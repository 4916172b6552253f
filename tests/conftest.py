"""Fixtures that several files share: tiny random hosts of every family, and heads that fit them.

Hosts are built from config with fixed seeds; nothing is downloaded. Test modules reach all of this
through fixtures, as the suite is imported in importlib mode.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it: no test may download

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead

WIDTH, DEPTH, IMAGE, PATCH, BATCH = 32, 4, 32, 8, 2
_VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IMAGE_TOKEN = 90
Outputs = list[Tensor]


@dataclass(frozen=True)
class HostCase:
    """A tiny host and how to run and check it.

    Attributes:
        name: For ids.
        build: Makes the host.
        tower: Path of its tower.
        family: Family file that must recognise it.
        prefix: Number of prefix tokens.
        contexts: Context kinds it must offer.
        run: Runs the host on (B, 3, 32, 32) pixels; all of its outputs.
        levels: The host library's own raw hidden states, (B, T, D) each, level 0 first.
        pooled: The library's own pooled vector (B, D), or None.
    """

    name: str
    build: Callable[[], nn.Module]
    tower: str
    family: str
    prefix: int
    contexts: tuple[str, ...]
    run: Callable[[Any, Tensor], Outputs]
    levels: Callable[[Any, Tensor], list[Tensor]]
    pooled: Callable[[Any, Tensor], Tensor] | None = None

    def host(self) -> nn.Module:
        """The host with its fixed weights, in evaluation mode."""
        torch.manual_seed(0)
        return self.build().eval()


def pixels(seed: int = 1, batch: int = BATCH, size: tuple[int, int] = (IMAGE, IMAGE)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- Hugging Face -------------------------------------------------------------------------------


def _clip_vision() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**_VISION))


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=16))


def _siglip_vision() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**_VISION))


def _siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(SiglipConfig(vision_config=_VISION, text_config=_TEXT))


def _dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**_VISION))


def _dinov2_registers() -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_VISION, num_register_tokens=4))


def _llava() -> nn.Module:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_TEXT, num_key_value_heads=4),
        image_token_index=IMAGE_TOKEN,
    )
    return LlavaForConditionalGeneration(config)


def _paligemma() -> nn.Module:
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=GemmaConfig(**_TEXT, num_key_value_heads=1, head_dim=8),
        image_token_index=IMAGE_TOKEN,
        projection_dim=WIDTH,
    )
    return PaliGemmaForConditionalGeneration(config)


def prompt(batch: int = BATCH, *, pictures: bool = True) -> dict[str, Tensor]:
    """Token ids of a prompt, with one picture's placeholders in each row or none."""
    image = [IMAGE_TOKEN] * ((IMAGE // PATCH) ** 2) if pictures else []
    ids = torch.tensor([[1, *image, 5, 6, 7]] * batch)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _hidden(tower: Any, x: Tensor) -> list[Tensor]:
    return list(tower(pixel_values=x, output_hidden_states=True).hidden_states)


def _run_tower(host: Any, x: Tensor) -> Outputs:
    out = host(pixel_values=x, output_hidden_states=True)
    pooled = [] if out.pooler_output is None else [out.pooler_output]
    return [out.last_hidden_state, *pooled, *out.hidden_states]


def _run_contrastive(host: Any, x: Tensor) -> Outputs:
    out = host(pixel_values=x, input_ids=prompt(len(x), pictures=False)["input_ids"])
    return [out.logits_per_image, out.image_embeds, out.text_embeds]


def _run_vlm(host: Any, x: Tensor) -> Outputs:
    return [host(pixel_values=x, **prompt(len(x))).logits]


# --- open_clip, OpenAI's layout, timm -----------------------------------------------------------


def _open_clip() -> nn.Module:
    import open_clip

    vision = {"layers": DEPTH, "width": WIDTH, "head_width": 8, "patch_size": PATCH}
    text = {"context_length": 8, "vocab_size": 99, "width": WIDTH, "heads": 4, "layers": 2}
    return cast("nn.Module", open_clip.CLIP(16, {**vision, "image_size": IMAGE}, text))


_TIMM: dict[str, Any] = {
    "img_size": IMAGE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": 4,
}


def _open_clip_timm() -> nn.Module:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "image_size": IMAGE,
        "timm_proj": "linear",
        "timm_pool": "",
    }
    text = {"context_length": 8, "vocab_size": 99, "width": WIDTH, "heads": 4, "layers": 2}
    model: Any = open_clip.CLIP(16, vision, text)
    model.visual.trunk = VisionTransformer(**_TIMM, num_classes=0, global_pool="token")
    model.visual.head = nn.Linear(WIDTH, 16)
    return cast("nn.Module", model)


def _timm(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(**{**_TIMM, "num_classes": 5, **options})

    return build


class _OpenAiBlock(nn.Module):
    """A block as in OpenAI's clip package: (N, B, D), attention without ``batch_first``."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 4)
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(WIDTH, 48), gelu=nn.GELU(), c_proj=nn.Linear(48, WIDTH))
        )
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed


class _OpenAiVision(nn.Module):
    """The module layout of OpenAI's clip package (MIT), whose blocks run sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution = IMAGE
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(_OpenAiBlock() for _ in range(DEPTH)))
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, 16))

    def embed(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        normed: Tensor = self.ln_pre(x + self.positional_embedding)
        return normed

    def forward(self, x: Tensor) -> Tensor:
        x = cast("nn.Sequential", self.transformer.resblocks)(self.embed(x).transpose(0, 1))
        projected: Tensor = self.ln_post(x.transpose(0, 1)[:, 0]) @ self.proj
        return projected


class _OpenAiClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = _OpenAiVision()

    def encode_image(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.visual(x)
        return encoded


def _openai_levels(host: Any, x: Tensor) -> list[Tensor]:
    states = [host.visual.embed(x)]
    for block in host.visual.transformer.resblocks:
        states.append(block(states[-1].transpose(0, 1)).transpose(0, 1))
    return states


def _open_clip_levels(host: Any, x: Tensor) -> list[Tensor]:
    visual = host.visual
    states = [visual._embeds(x)]
    for block in visual.transformer.resblocks:
        states.append(block(states[-1]))
    return states


def _timm_levels(host: Any, x: Tensor) -> list[Tensor]:
    """Level 0 by timm's own embedding, the others by its ``forward_intermediates``."""
    first = host.norm_pre(host.patch_drop(host._pos_embed(host.patch_embed(x))))
    rest = host.forward_intermediates(
        x, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    return [first, *(torch.cat([prefix, tokens], dim=1) for tokens, prefix in rest)]


def _timm_levels_bare(host: Any, x: Tensor) -> list[Tensor]:
    """As above for towers without prefix tokens."""
    first = host.norm_pre(host.patch_drop(host._pos_embed(host.patch_embed(x))))
    rest = host.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
    return [first, *rest]


def _timm_pooled(host: Any, x: Tensor) -> Tensor:
    return cast("Tensor", host.forward_head(host.forward_features(x), pre_logits=True))


HOSTS: tuple[HostCase, ...] = (
    HostCase(
        "open_clip", _open_clip, "visual", "open_clip", 1, ("pooled", "cls", "mean"),
        lambda host, x: [host.encode_image(x)], _open_clip_levels,
        lambda host, x: host.visual.ln_post(_open_clip_levels(host, x)[-1])[:, 0],
    ),
    HostCase(
        "open_clip_timm", _open_clip_timm, "visual.trunk", "timm", 1, ("pooled", "cls", "mean"),
        lambda host, x: [host.encode_image(x)],
        lambda host, x: _timm_levels(host.visual.trunk, x),
        lambda host, x: host.visual.trunk(x),
    ),
    HostCase(
        "openai_clip", _OpenAiClip, "visual", "open_clip", 1, ("pooled", "cls", "mean"),
        lambda host, x: [host.encode_image(x)], _openai_levels,
        lambda host, x: host.visual.ln_post(_openai_levels(host, x)[-1][:, 0]),
    ),
    HostCase(
        "hf_clip_vision", _clip_vision, "", "hf_clip", 1, ("pooled", "cls", "mean"),
        _run_tower, _hidden, lambda host, x: host(x).pooler_output,
    ),
    HostCase(
        "hf_clip", _clip, "vision_model", "hf_clip", 1, ("pooled", "cls", "mean"),
        _run_contrastive, lambda host, x: _hidden(host.vision_model, x),
        lambda host, x: host.vision_model(x).pooler_output,
    ),
    HostCase(
        "hf_siglip_vision", _siglip_vision, "", "hf_siglip", 0, ("pooled", "mean"),
        _run_tower, _hidden, lambda host, x: host(x).pooler_output,
    ),
    HostCase(
        "hf_siglip", _siglip, "vision_model", "hf_siglip", 0, ("pooled", "mean"),
        _run_contrastive, lambda host, x: _hidden(host.vision_model, x),
        lambda host, x: host.vision_model(x).pooler_output,
    ),
    HostCase(
        "dinov2", _dinov2, "", "hf_dinov2", 1, ("pooled", "cls", "mean"),
        _run_tower, _hidden, lambda host, x: host(x).pooler_output,
    ),
    HostCase(
        "dinov2_registers", _dinov2_registers, "", "hf_dinov2", 5, ("pooled", "cls", "mean"),
        _run_tower, _hidden, lambda host, x: host(x).pooler_output,
    ),
    HostCase(
        "timm", _timm(), "", "timm", 1, ("pooled", "cls", "mean"),
        lambda host, x: [host(x)], _timm_levels, _timm_pooled,
    ),
    HostCase(
        "timm_registers", _timm(reg_tokens=4, global_pool="avg"), "", "timm", 5,
        ("pooled", "cls", "mean"), lambda host, x: [host(x)], _timm_levels, _timm_pooled,
    ),
    HostCase(
        "timm_siglip", _timm(class_token=False, global_pool="map"), "", "timm", 0,
        ("pooled", "mean"), lambda host, x: [host(x)], _timm_levels_bare, _timm_pooled,
    ),
    HostCase(
        "llava", _llava, "model.vision_tower", "hf_clip", 1, ("pooled", "cls", "mean"),
        _run_vlm, lambda host, x: _hidden(host.model.vision_tower, x),
        lambda host, x: host.model.vision_tower(x).pooler_output,
    ),
    HostCase(
        "paligemma", _paligemma, "model.vision_tower", "hf_siglip", 0, ("mean",),
        _run_vlm, lambda host, x: _hidden(host.model.vision_tower, x),
    ),
)  # fmt: skip
BY_NAME = {case.name: case for case in HOSTS}


@pytest.fixture(params=HOSTS, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> HostCase:
    """Every host in turn."""
    return cast("HostCase", request.param)


@pytest.fixture
def make_host() -> Callable[[str], nn.Module]:
    """A host by its name in the table."""
    return lambda name: BY_NAME[name].host()


@pytest.fixture
def make_pixels() -> Callable[..., Tensor]:
    """(B, 3, H, W) pixels from a seed."""
    return pixels


@pytest.fixture
def make_prompt() -> Callable[..., dict[str, Tensor]]:
    """Inputs of a VLM without its pixels."""
    return prompt


def small_head(host: nn.Module, **options: Any) -> DepthHead:
    """A small head that fits a host, random but not dead, in evaluation mode."""
    torch.manual_seed(3)
    defaults: dict[str, Any] = {"channels": (16, 8, 8, 8), "film_hidden": 16, "activation": "log"}
    return DepthHead.for_host(host, **{**defaults, **options}).eval()


@pytest.fixture
def make_head() -> Callable[..., DepthHead]:
    """See ``small_head``."""
    return small_head
