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

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.errors import NoDepthError

cases: Any = importlib.import_module("tests.lerobot.cases")
plain: Any = importlib.import_module("tests.lerobot.policies")
KEYS: tuple[str, ...] = plain.KEYS
FRAMES = 500


def frame_of(camera: int, frame: int) -> torch.Tensor:
    """A picture whose red says which camera and frame it is of; so does nothing else of it."""
    height, width = plain.CAMERAS[KEYS[camera].rpartition(".")[2]]
    picture_13HW = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(frame))
    picture_13HW[:, 0] *= 0.02
    picture_13HW[:, 0] += (camera * 0.3) + 0.25 * frame / FRAMES
    return picture_13HW


@pytest.mark.parametrize("name", [case.name for case in cases.NAMED if case.name != "pi0_fast"])
def test_no_map_under_another_cameras_name(
    name: str, tmp_path: Path, red_head: Callable[[nn.Module], DepthHead]
) -> None:
    """Cameras come and go at random, and the batch names them in any order."""
    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    chance = random.Random(7)
    words = {k: v[:1] for k, v in plain.batch_of().items() if k not in (*KEYS, "action", "task")}
    seen = unseen = 0
    with attach(policy, red_head(policy)) as plugin:
        for frame in range(FRAMES):
            # The third is added mid-way, and the first lost near the end.
            fitted = KEYS[: 2 if frame < FRAMES // 2 else 3][1 if frame > FRAMES * 0.9 else 0 :]
            shown = [key for key in fitted if chance.random() > 0.2] or [chance.choice(fitted)]
            chance.shuffle(shown)
            cameras = {key: frame_of(KEYS.index(key), frame) for key in shown}
            policy.predict_action_chunk({**cameras, **words})
            for key in KEYS:
                if key in shown:
                    told = (plugin.depth_of(key)[..., 4:-4, 4:-4] - 1) / 2
                    assert (told - cameras[key][:, :1, 4:-4, 4:-4]).abs().max() < 0.03, (frame, key)
                    seen += 1
                else:
                    with pytest.raises(NoDepthError, match=f"'{key}' was not in the batch"):
                        plugin.depth_of(key)
                    unseen += 1
    assert seen > FRAMES
    assert unseen > FRAMES // 4
