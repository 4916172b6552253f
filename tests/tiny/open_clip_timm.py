"""Rows of the host table: open_clip, OpenAI's clip layout, timm, and a ViT nobody has seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.tiny.case import DEPTH, IMAGE, PATCH, WIDTH, HostCase

_TEXT: dict[str, Any] = {
    "context_length": 8,
    "vocab_size": 99,
    "width": WIDTH,
    "heads": 4,
    "layers": 2,
}
TIMM: dict[str, Any] = {
    "img_size": IMAGE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": 4,
}


def _open_clip() -> nn.Module:
    import open_clip

    vision = {"layers": DEPTH, "width": WIDTH, "head_width": 8, "patch_size": PATCH}
    return cast("nn.Module", open_clip.CLIP(16, {**vision, "image_size": IMAGE}, _TEXT))


def _open_clip_timm() -> nn.Module:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "image_size": IMAGE,
        "timm_proj": "linear",
        "timm_pool": "",
    }
    model: Any = open_clip.CLIP(16, vision, _TEXT)
    model.visual.trunk = VisionTransformer(**TIMM, num_classes=0, global_pool="token")
    model.visual.head = nn.Linear(WIDTH, 16)
    return cast("nn.Module", model)


def timm_vit(**options: Any) -> Callable[[], nn.Module]:
    """Builds a vision transformer of timm's."""

    def build() -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(**{**TIMM, "num_classes": 5, **options})

    return build


def timm_parallel() -> nn.Module:
    """timm's, whose blocks hold nothing but lists of branches that run side by side."""
    from timm.models.vision_transformer import ParallelThingsBlock

    return timm_vit(block_fn=ParallelThingsBlock)()


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


class _StrangerBlock(nn.Module):
    """Attention and MLP side by side, names of its own, an output in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.global_attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor, extra: int) -> tuple[Tensor, int]:
        y = self.before(states)
        mixed = self.global_attention(y, y, y, need_weights=False)[0]
        return states + mixed * self.gate(y).sigmoid(), extra + 1


class _StrangerEye(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.where = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2, WIDTH))
        self.stages = nn.ModuleList(_StrangerBlock() for _ in range(DEPTH))

    def states(self, x: Tensor) -> list[Tensor]:
        states, extra = self.cut(x).flatten(2).mT + self.where, 0
        seen = [states]
        for block in self.stages:
            states, extra = block(states, extra=extra)
            seen.append(states)
        return seen

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[-1]


class _Stranger(nn.Module):
    """A ViT that no library has: patches and blocks lie in modules of unusual names."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = _StrangerEye()
        self.answer = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.answer(self.eye(x).mean(dim=1))
        return answer


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


def timm_levels(host: Any, x: Tensor) -> list[Tensor]:
    """Level 0 by timm's own embedding, the others by its ``forward_intermediates``."""
    first = host._pos_embed(host.patch_embed(x))
    first = first[0] if isinstance(first, tuple) else host.patch_drop(first)  # EVA: with its RoPE
    first = host.norm_pre(first)
    rest = host.forward_intermediates(
        x, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    if host.num_prefix_tokens == 0:
        return [first, *(one if isinstance(one, Tensor) else one[0] for one in rest)]
    return [first, *(torch.cat([prefix, tokens], dim=1) for tokens, prefix in rest)]


def _timm_pooled(host: Any, x: Tensor) -> Tensor:
    return cast("Tensor", host.forward_head(host.forward_features(x), pre_logits=True))


def _encode(host: Any, x: Tensor) -> list[Tensor]:
    return [host.encode_image(x)]


def _call(host: Any, x: Tensor) -> list[Tensor]:
    return [host(x)]


_ALL = ("pooled", "cls", "mean")
_OPEN_CLIP, _TIMM = "open_clip (own and timm towers), OpenAI's clip layout", "timm ViTs"

OPEN_CLIP_AND_TIMM: tuple[HostCase, ...] = (
    HostCase(
        name="open_clip", title=_OPEN_CLIP, build=_open_clip, tower="visual", family="open_clip",
        prefix=1, contexts=_ALL, run=_encode, levels=_open_clip_levels,
        pooled=lambda host, x: host.visual.ln_post(_open_clip_levels(host, x)[-1])[:, 0],
    ),
    HostCase(
        name="open_clip_timm", title=_OPEN_CLIP, build=_open_clip_timm, tower="visual.trunk",
        family="timm", prefix=1, contexts=_ALL, run=_encode,
        levels=lambda host, x: timm_levels(host.visual.trunk, x),
        pooled=lambda host, x: host.visual.trunk(x),
    ),
    HostCase(
        name="openai_clip", title=_OPEN_CLIP, build=_OpenAiClip, tower="visual",
        family="open_clip", prefix=1, contexts=_ALL, run=_encode, levels=_openai_levels,
        pooled=lambda host, x: host.visual.ln_post(_openai_levels(host, x)[-1][:, 0]),
    ),
    HostCase(
        name="timm", title=_TIMM, build=timm_vit(), tower="", family="timm", prefix=1,
        contexts=_ALL, run=_call, levels=timm_levels, pooled=_timm_pooled,
    ),
    HostCase(
        name="timm_registers", title=_TIMM, build=timm_vit(reg_tokens=4, global_pool="avg"),
        tower="", family="timm", prefix=5, contexts=_ALL, run=_call, levels=timm_levels,
        pooled=_timm_pooled,
    ),
    HostCase(
        name="timm_parallel", title=_TIMM, build=timm_parallel, tower="", family="timm", prefix=1,
        contexts=_ALL, run=_call, levels=timm_levels, pooled=_timm_pooled,
    ),
    HostCase(
        name="timm_siglip", title=_TIMM, build=timm_vit(class_token=False, global_pool="map"),
        tower="", family="timm", prefix=0, contexts=("pooled", "mean"), run=_call,
        levels=timm_levels, pooled=_timm_pooled,
    ),
    HostCase(
        name="stranger", title="a ViT nobody has seen", build=_Stranger, tower="eye",
        family="unknown", prefix=0, contexts=("mean",), run=_call,
        levels=lambda host, x: host.eye.states(x),
    ),
)  # fmt: skip
