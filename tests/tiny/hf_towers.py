"""Rows of the host table: bare towers and contrastive models of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from tests.tiny.case import TEXT, VISION, HostCase, Outputs, hidden_states, prompt, tensors


def make(model: str, **options: Any) -> nn.Module:
    """A model of transformers by the name of its class; its config's is named alike."""
    import transformers

    stem = model
    for ending in (
        "ForConditionalGeneration",
        "ForCausalLM",
        "WithProjection",
        "Model",
        "Backbone",
    ):
        stem = stem.removesuffix(ending)
    config = getattr(transformers, f"{stem}Config")(**options)
    return cast("nn.Module", getattr(transformers, model)(config))


def _run(host: Any, x: Tensor) -> Outputs:
    return tensors(host(pixel_values=x, output_hidden_states=True))


def _pooled(host: Any, x: Tensor) -> Tensor:
    return cast("Tensor", host(x).pooler_output)


def _run_contrastive(host: Any, x: Tensor) -> Outputs:
    out = host(pixel_values=x, input_ids=prompt(len(x), pictures=False)["input_ids"])
    return [out.logits_per_image, out.image_embeds, out.text_embeds]


def _bare(
    name: str, model: str, title: str, shape: tuple[str, int, tuple[str, ...]], **options: Any
) -> HostCase:
    """A row of a host that is its tower; ``shape`` is (family, prefix, contexts)."""
    family, prefix, contexts = shape
    return HostCase(
        name=name,
        title=title,
        build=partial(make, model, **VISION, **options),
        tower="",
        family=family,
        prefix=prefix,
        contexts=contexts,
        run=_run,
        levels=hidden_states,
        pooled=_pooled if "pooled" in contexts else None,
        needs=model,
    )


def _inside(name: str, model: str, title: str, like: HostCase, **options: Any) -> HostCase:
    """A row of a host that holds such a tower at ``vision_model``."""
    return HostCase(
        name=name,
        title=title,
        build=partial(make, model, **options),
        tower="vision_model",
        family=like.family,
        prefix=like.prefix,
        contexts=like.contexts,
        run=_run if "Vision" in model else _run_contrastive,
        levels=lambda host, x: hidden_states(host.vision_model, x),
        pooled=lambda host, x: host.vision_model(x).pooler_output,
        needs=model,
    )


_WITH_CLASS, _WITHOUT = ("pooled", "cls", "mean"), ("pooled", "mean")
_CLIP = "HF CLIPVisionModel, CLIPModel"
_SIGLIP = "HF SiglipVisionModel, SiglipModel"
_DINOV2 = "HF Dinov2, Dinov2WithRegisters"
_VIT = "HF ViT, DeiT, Pixio, Dinov3, AIMv2"

_clip = _bare("hf_clip_vision", "CLIPVisionModel", _CLIP, ("hf_clip", 1, _WITH_CLASS))
_siglip = _bare("hf_siglip_vision", "SiglipVisionModel", _SIGLIP, ("hf_siglip", 0, _WITHOUT))

HF_TOWERS: tuple[HostCase, ...] = (
    _clip,
    _inside(
        *("hf_clip", "CLIPModel", _CLIP, _clip),
        vision_config=VISION,
        text_config=TEXT,
        projection_dim=16,
    ),
    _inside("hf_clip_projection", "CLIPVisionModelWithProjection", _CLIP, _clip, **VISION),
    _siglip,
    _inside(
        *("hf_siglip", "SiglipModel", _SIGLIP, _siglip),
        vision_config=VISION,
        text_config=TEXT,
    ),
    _bare("dinov2", "Dinov2Model", _DINOV2, ("hf_dinov2", 1, _WITH_CLASS)),
    _bare(
        *("dinov2_registers", "Dinov2WithRegistersModel", _DINOV2, ("hf_dinov2", 5, _WITH_CLASS)),
        num_register_tokens=4,
    ),
    _bare("hf_vit", "ViTModel", _VIT, ("unknown", 1, ("cls", "mean"))),
    _bare("hf_deit", "DeiTModel", _VIT, ("unknown", 2, ("cls", "mean"))),
    _bare("hf_pixio", "PixioModel", _VIT, ("unknown", 3, ("cls", "mean")), n_cls_tokens=3),
    _bare("hf_aimv2", "Aimv2VisionModel", _VIT, ("unknown", 0, ("mean",))),
    _bare(
        *("dinov3", "DINOv3ViTModel", _VIT, ("unknown", 5, ("cls", "mean"))),
        num_register_tokens=4,
    ),
)
