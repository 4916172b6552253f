"""What results/depth_tokens.py trains and tests on: frames as the frozen demo host gives them.

Axes: F frames, N patches, D tower width, P pairs of patches of a frame, h w patches, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import shown
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.formats.rgbd import RgbdFolder
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.files.turbo import colourise
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.shipped import load_head

BATCH = 8
NEAR, FAR = 0.2, 10.0
"""Metres at both ends of the depth picture's colours, which are even in log depth."""
CLEAR = 1.1
"""Largest over smallest depth of a patch that may be marked: it shows one thing."""
FEWEST = 20
"""Clear patches of a frame that is kept."""


class Frames(NamedTuple):
    """Frames of one set."""

    host_FND: Tensor
    """The host's final patch tokens, float16."""
    picture_FND: Tensor
    """Those of the depth picture: the head's map in colours through the same tower."""
    read_FN5: Tensor
    """``plugin.tokens()``, the frame's camera given."""
    true_FN5: Tensor
    """The same of the true depth: the geometric mean over the patch, confidence 1."""
    clear_FN: Tensor
    """Bool: the patch may be marked."""

    @classmethod
    def join(cls, parts: Sequence[Frames]) -> Frames:
        """All frames of some sets."""
        return cls(*(torch.cat(one) for one in zip(*parts, strict=True)))


def frames_of(root: Path, split: str, cache: Path, **config: Any) -> Frames:
    """A split of an RGB-D folder; computed once, then read from the cache."""
    stored = cache / f"{root.name}-{split}.safetensors"
    if not stored.exists():
        dataset = RgbdFolder(DataConfig(format="rgbd", root=str(root), split=split, **config))
        host, head = load_host("demo"), load_head("demo").eval()
        with torch.no_grad(), attach(host.model, head, processor=host.preprocessing) as plugin:
            parts = [
                _read(plugin, [dataset[i] for i in run.tolist()])
                for run in torch.arange(len(dataset)).split(BATCH)
            ]
        cache.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in Frames.join(parts)._asdict().items()}, stored)
    found = Frames(**load_file(stored))
    kept = found.clear_FN.sum(1) >= FEWEST
    return Frames(*(one[kept] for one in found))


def _read(plugin: DepthPlugin, samples: Sequence[Sample]) -> Frames:
    framing = PictureDepth(plugin).framing
    pictures = [one.picture for one in samples]
    said: dict[str, Any] = {
        "original_sizes": [(one.height, one.width) for one in pictures],
        "intrinsics": [one.intrinsics for one in samples],
    }

    def tokens_of(images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack(shown(images, framing)[0])
        final: Tensor = plugin.tower.module(pixels).last_hidden_state[:, 1:]
        return final.half()

    host_FND = tokens_of(pictures)
    read_FN5, maps = plugin.tokens(**said), plugin.predict(**said)
    assert isinstance(read_FN5, Tensor)
    in_colours = [
        Image.fromarray(colourise((one_1HW / NEAR).log().clamp_min(0) + 1, 1, 1 + _log(FAR / NEAR)))
        for one_1HW in maps
    ]
    picture_FND = tokens_of(in_colours)
    side = round(read_FN5.shape[1] ** 0.5)
    log_Fhw, clear_Fhw = _true_depth([one.depth_1HW for one in samples], side)
    depth_FN1 = log_Fhw.exp().flatten(1)[..., None]
    rays_FN3 = read_FN5[..., 2:] / read_FN5[..., :1]
    true_FN5 = torch.cat([depth_FN1, torch.ones_like(depth_FN1), rays_FN3 * depth_FN1], dim=-1)
    return Frames(host_FND, picture_FND, read_FN5, true_FN5, clear_Fhw.flatten(1))


def _log(value: float) -> float:
    return float(torch.tensor(value).log())


def _true_depth(depths: Sequence[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Mean log depth of each patch, NaN where a pixel has none; and whether it shows one thing."""
    logs, clear = [], []
    for depth_1HW in depths:
        log_1HW = F.interpolate(depth_1HW[None], (side * 14, side * 14), mode="nearest-exact")[0]
        log_1HW = torch.where(log_1HW > 0, log_1HW, torch.nan).log()
        known_1hw = F.avg_pool2d(log_1HW, 14)
        filled_1HW = log_1HW.nan_to_num(0.0)
        spread_1hw = F.max_pool2d(filled_1HW, 14) + F.max_pool2d(-filled_1HW, 14)
        logs.append(known_1hw)
        clear.append(known_1hw.isfinite() & (spread_1hw < _log(CLEAR)))
    return torch.cat(logs), torch.cat(clear)


class Pairs(NamedTuple):
    """Two marked patches, and the truth about them."""

    marks_FP2: Tensor
    """Indices of the patches A and B."""
    truth: Answers


class Answers(NamedTuple):
    """To the four questions about A and B."""

    distance_FP: Tensor
    """Log metres from the camera to A."""
    gap_FP: Tensor
    """Log metres from A to B."""
    nearer_FP: Tensor
    """Positive: A is nearer to the camera; log ratio of the distances, or a logit."""
    step_FP3: Tensor
    """The way from A to B, of length 1."""


def answers_of(tokens_FN5: Tensor, marks_FP2: Tensor) -> Answers:
    """What points say by themselves."""
    points_FP23 = torch.stack(
        [tokens_FN5[..., 2:].gather(1, marks_FP2[..., i, None].expand(-1, -1, 3)) for i in (0, 1)],
        dim=2,
    )
    distance_FP2 = points_FP23.norm(dim=-1).log()
    way_FP3 = points_FP23[:, :, 1] - points_FP23[:, :, 0]
    return Answers(
        distance_FP2[..., 0],
        way_FP3.norm(dim=-1).log(),
        distance_FP2[..., 1] - distance_FP2[..., 0],
        F.normalize(way_FP3, dim=-1),
    )


def draw_pairs(frames: Frames, count: int, generator: torch.Generator) -> Pairs:
    """Pairs of clear patches that are apart by more than 5% of A's distance."""
    weights_FN = frames.clear_FN.float()
    tried = 4 * count
    marks_FP2 = torch.stack(
        [torch.multinomial(weights_FN, tried, replacement=True, generator=generator) for _ in "AB"],
        dim=-1,
    )
    answers = answers_of(frames.true_FN5, marks_FP2)
    apart_FP = answers.gap_FP > answers.distance_FP + _log(0.05)
    first_FP = apart_FP.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    marks_FP2 = marks_FP2.gather(1, first_FP[..., None].expand(-1, -1, 2))
    return Pairs(marks_FP2, answers_of(frames.true_FN5, marks_FP2))


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of frames, all of them before one again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order.split(size)[: count // size]
