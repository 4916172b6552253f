"""500 frames of three cameras, some of them gone: never a map under another camera's name."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.errors import NoDepthError

cases: Any = importlib.import_module("tests.lerobot.cases")
plain: Any = importlib.import_module("tests.lerobot.policies")
KEYS: tuple[str, ...] = plain.KEYS


def frame_of(size: tuple[int, int], camera: int, share: float) -> torch.Tensor:
    """A picture whose red says which camera and frame it is of; so does nothing else of it."""
    noise = torch.Generator().manual_seed(int(share * 1000))
    picture_13HW = torch.rand(1, 3, *size, generator=noise)
    picture_13HW[:, 0] *= 0.02
    picture_13HW[:, 0] += camera * 0.3 + 0.25 * share
    return picture_13HW


FRAMES = {"smolvla": 500, "pi0": 500, "pi05": 100, "groot": 100, "wall_x": 100}


@pytest.mark.parametrize("name", FRAMES)
def test_no_map_under_another_cameras_name(
    name: str, tmp_path: Path, red_head: Callable[[nn.Module], DepthHead]
) -> None:
    """Cameras come and go at random, and the batch names them in any order."""
    case, frames = cases.BY_NAME[name], FRAMES[name]
    policy = case.make(tmp_path)
    chance = random.Random(7)
    batch = case.batch(policy)
    sizes = [tuple(batch[key].shape[-2:]) for key in KEYS]
    words = {key: x[:1] for key, x in batch.items() if key not in (*KEYS, "action")}
    mean, deviation = case.red
    seen = unseen = 0
    with case.attach(policy, red_head(policy)) as plugin:
        for frame in range(frames):
            # The third is added mid-way, and the first lost near the end.
            fitted = KEYS[: 2 if frame < frames // 2 else 3][1 if frame > frames * 0.9 else 0 :]
            shown = [key for key in fitted if chance.random() > 0.2] or [chance.choice(fitted)]
            chance.shuffle(shown)
            at = {key: KEYS.index(key) for key in shown}
            cameras = {key: frame_of(sizes[one], one, frame / frames) for key, one in at.items()}
            case.act(policy, {**cameras, **words})
            for key in KEYS:
                if key in shown:
                    told = (plugin.depth_of(key)[..., 4:-4, 4:-4] - 2) * deviation + mean
                    assert (told - cameras[key][:, :1, 4:-4, 4:-4]).abs().max() < 0.03, (frame, key)
                    seen += 1
                else:
                    with pytest.raises(NoDepthError, match=f"'{key}' was not in the batch"):
                        plugin.depth_of(key)
                    unseen += 1
    assert seen > frames
    assert unseen > frames // 4
