"""The table of LeRobot's policies: how each is made, run, trained and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.lerobot import more_policies as more
from tests.lerobot import policies as plain
from tests.lerobot.policies import STEPS

Batch = dict[str, Any]


def _batch(_: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return plain.batch_of(seed=seed)


def _square(_: Any, seed: int = 0, *, train: bool = False) -> Batch:
    batch = more.square_batch(seed=seed)
    if train:  # with a dimension of steps
        for name in (*plain.KEYS, "observation.state"):
            batch[name] = batch[name][:, None]
        batch["action_is_pad"] = torch.zeros(2, STEPS, dtype=torch.bool)
    return batch


def _select(policy: Any, batch: Batch) -> Tensor:
    policy.reset()
    torch.manual_seed(3)
    action: Tensor = policy.select_action({k: v for k, v in batch.items() if k != "action"})
    return action


@dataclass(frozen=True)
class Case:
    """A policy.

    Attributes:
        name: As LeRobot has it.
        build: Makes it, given a folder for what it loads by name.
        tower: Path of its tower.
        runs: Path of the method that it is compiled at; none for those with Qwen's towers:
            see results/lerobot_policies.md.
        batch: (policy, seed, train) -> a batch.
        act: (policy, batch) -> actions, from the same noise each time.
        by_name: Whether ``depth_of`` knows its cameras; else the views of its one pass are the
            rows of the batch by the cameras, in the order of the policy's features.
    """

    name: str
    build: Callable[..., Any]
    tower: str
    runs: str = ""
    batch: Callable[..., Batch] = _batch
    act: Callable[[Any, Batch], Tensor] = plain.actions_of
    by_name: bool = False

    def make(self, folder: Path, **options: Any) -> Any:
        """The policy, always with the same weights."""
        torch.manual_seed(0)
        return self.build(folder, **options).eval()


_PALIGEMMA = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model"


def _fast(_: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return more.fast_batch(seed=seed)


def _eo1(policy: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return more.eo1_batch(policy, seed=seed, train=train)


def _groot(policy: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return more.groot_batch(policy, seed=seed)


CASES = (
    Case(
        "smolvla",
        plain.smolvla,
        "model.vlm_with_expert.vlm.model.vision_model",
        "model.sample_actions",
        by_name=True,
    ),
    Case("pi0", plain.pi0, _PALIGEMMA, "model.sample_actions", by_name=True),
    Case("pi05", plain.pi05, _PALIGEMMA, "model.sample_actions", by_name=True),
    Case(
        "pi0_fast",
        more.pi0_fast,
        _PALIGEMMA,
        "model.sample_actions_fast_kv_cache",
        batch=_fast,
        by_name=True,
    ),
    Case(
        "multi_task_dit",
        more.multi_task_dit,
        "observation_encoder.vision_encoder.model.vision_model",
        "observation_encoder.encode",
        batch=_square,
        act=_select,
    ),
    Case("eo1", more.eo1, "model.vlm_backbone.model.visual", batch=_eo1),
    Case("vla_jepa", more.vla_jepa, "model.qwen.model.model.visual"),
    Case(
        "groot",
        more.groot,
        "_groot_model.backbone.model.model.visual",
        batch=_groot,
    ),
)
BY_NAME = {case.name: case for case in CASES}
NAMED = tuple(case for case in CASES if case.by_name)
NOT_BUILT = {
    "evo1": "not tried: loads InternVL3's model and tokenizer by name",
    "wall_x": "not tried: loads its model, processor and action tokenizer by name",
    "molmoact2": "not tried: loads a checkpoint's folder with its tokenizer and action processor",
    "fastwam": "not tried; whether it has a ViT tower was not looked at",
    "lingbot_va": "not tried: loads Wan's VAE and text encoder; a ViT tower was not looked for",
    "gaussian_actor": "not tried; whether it has a ViT tower was not looked at",
    "rewards: sarm, robometer, topreward, classifier": "not tried: no policies",
}
