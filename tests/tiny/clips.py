"""Rows of towers of clips: each picture is a clip as long as a tubelet, so that it is one view.

Axes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.tiny.case import DEPTH, IMAGE, PATCH, VISION, WIDTH
from tests.tiny.hf_towers import make
from tests.tiny.packed_case import Inputs, PackedCase

_SAME_SIZE: dict[str, Any] = {"grids": ((4, 4), (4, 4), (4, 4)), "tile": (4, 4)}


def as_clips(pictures: list[Tensor], frames: int, name: str) -> Inputs:
    """Each picture a clip (B, T, 3, H, W) of equal frames."""
    clips_BT3HW = torch.stack([x.expand(frames, *x.shape) for x in pictures])
    return {name: clips_BT3HW}


def one_clip(pictures: list[Tensor], span: int, name: str) -> Inputs:
    """One clip (1, T, 3, H, W) of all pictures, each for ``span`` frames."""
    return {name: torch.stack([x for x in pictures for _ in range(span)])[None]}


def _videomae(frames: int) -> nn.Module:
    host: Any = make("VideoMAEModel", **VISION, num_frames=frames, tubelet_size=2)
    # No parameter: coordinates could not pass.
    host.embeddings.position_embeddings = torch.zeros_like(host.embeddings.position_embeddings)
    return cast("nn.Module", host)


def _vivit(frames: int) -> nn.Module:
    vision = {key: value for key, value in VISION.items() if key != "patch_size"}
    return make("VivitModel", **vision, num_frames=frames, tubelet_size=[2, PATCH, PATCH])


def _vjepa2(frames: int) -> nn.Module:
    return make(
        "VJEPA2Model",
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        crop_size=IMAGE,
        patch_size=PATCH,
        frames_per_clip=frames,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
    )


def _videoprism(frames: int) -> nn.Module:
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size")
    vision: dict[str, Any] = {key: VISION[key] for key in keys}
    vision |= {"num_frames": frames, "tubelet_size": [1, PATCH, PATCH]}
    return make("VideoPrismVisionModel", **vision, num_spatial_layers=DEPTH, num_temporal_layers=2)


def _timesformer(frames: int) -> nn.Module:
    return make("TimesformerModel", **VISION, num_frames=frames)


def _clip_case(name: str, model: str, **case: Any) -> PackedCase:
    make_host, span = LONGER[name]
    key = "pixel_values_videos" if model.startswith(("VJ", "VideoPrism")) else "pixel_values"
    return PackedCase(
        name=name,
        title="VideoMAE, ViViT, V-JEPA2, VideoPrism, TimeSformer",
        build=partial(make_host, span),
        pack=partial(as_clips, frames=span, name=key),
        family="hf_video",
        see=lambda host, inputs: host(**inputs),
        needs=model,
        **{"tower": "", **_SAME_SIZE, **case},
    )


LONGER = {  # how a host of clips of so many frames is made, and the frames of one of its tubelets
    "videomae": (_videomae, 2),
    "vivit": (_vivit, 2),
    "vjepa2": (_vjepa2, 2),
    "videoprism": (_videoprism, 1),
    "timesformer": (_timesformer, 1),
}
_WITH_CLASS: dict[str, Any] = {"contexts": ("cls", "mean")}
CLIPS: tuple[PackedCase, ...] = (
    _clip_case("videomae", "VideoMAEModel"),
    _clip_case("vivit", "VivitModel", **_WITH_CLASS),
    _clip_case("vjepa2", "VJEPA2Model", tower="encoder"),
    _clip_case("videoprism", "VideoPrismVisionModel"),
    _clip_case("timesformer", "TimesformerModel", **_WITH_CLASS),
)
