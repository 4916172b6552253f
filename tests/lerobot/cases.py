"""The table of LeRobot's policies: how each is made, run, trained and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from tests.lerobot import more_policies as more
from tests.lerobot import policies as plain
from tests.lerobot import qwen_policies as qwen
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


def _square_all(_: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return more.square_batch(seed=seed)


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
        runs: Path of the method that it is compiled at.
        batch: (policy, seed, train) -> a batch of pictures by name.
        run: (policy, prepared batch) -> actions, from the same noise each time.
        preprocessor: Makes the package's own pipeline, where that prepares the pictures.
        one_pass: Whether one tower pass shows all cameras.
        missing: Options with which cameras may be missing from a batch; None: they may not.
        red: (mean, deviation) of what its tower's red is normalised by.
    """

    name: str
    build: Callable[..., Any]
    tower: str
    runs: str
    batch: Callable[..., Batch] = _batch
    run: Callable[[Any, Batch], Tensor] = plain.actions_of
    preprocessor: Callable[[Any], Any] | None = None
    one_pass: bool = False
    missing: dict[str, Any] | None = None
    red: tuple[float, float] = (0.5, 0.5)

    def make(self, folder: Path, **options: Any) -> Any:
        """The policy, always with the same weights."""
        torch.manual_seed(0)
        return self.build(folder, **options).eval()

    def pipeline(self, policy: Any) -> Any:
        """The policy's own pipeline; None where it prepares its pictures itself."""
        if self.preprocessor is None:
            return None
        if policy not in _PIPELINES:
            _PIPELINES[policy] = self.preprocessor(policy)
        return _PIPELINES[policy]

    def attach(self, policy: Any, head: DepthHead, **options: Any) -> DepthPlugin:
        """The plug-in, as a user attaches it to that policy."""
        return attach(policy, head, processor=self.pipeline(policy), **options)

    def act(self, policy: Any, batch: Batch) -> Tensor:
        """Actions, from the same noise each time."""
        given = {key: value for key, value in batch.items() if key != "action"}
        return self.run(policy, self._prepared(policy, given))

    def loss(self, policy: Any, batch: Batch) -> Tensor:
        """The training forward, from the same noise each time."""
        return plain.loss_of(policy, self._prepared(policy, batch))

    def _prepared(self, policy: Any, batch: Batch) -> Batch:
        pipeline = self.pipeline(policy)
        prepared: Batch = batch if pipeline is None else pipeline(dict(batch))
        return {key: value for key, value in prepared.items() if value is not None}


_PIPELINES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_FILLED_IN = {"empty_cameras": 1}
_CLIP_RED = (0.48145466, 0.26862954)
_PALIGEMMA = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model"


def _fast(_: Any, seed: int = 0, *, train: bool = False) -> Batch:
    return more.fast_batch(seed=seed)


CASES = (
    Case(
        "smolvla",
        plain.smolvla,
        "model.vlm_with_expert.vlm.model.vision_model",
        "model.sample_actions",
        missing=_FILLED_IN,
    ),
    Case("pi0", plain.pi0, _PALIGEMMA, "model.sample_actions", missing=_FILLED_IN),
    Case("pi05", plain.pi05, _PALIGEMMA, "model.sample_actions", missing=_FILLED_IN),
    Case(
        "pi0_fast",
        more.pi0_fast,
        _PALIGEMMA,
        "model.sample_actions_fast_kv_cache",
        batch=_fast,
        missing=_FILLED_IN,
    ),
    Case(
        "multi_task_dit",
        more.multi_task_dit,
        "observation_encoder.vision_encoder.model.vision_model",
        "observation_encoder.encode",
        batch=_square,
        run=_select,
        one_pass=True,
        red=(0.0, 1.0),
    ),
    Case(
        "eo1",
        qwen.eo1,
        "model.vlm_backbone.model.visual",
        "model.sample_actions",
        preprocessor=qwen.eo1_preprocessor,
        one_pass=True,
        red=_CLIP_RED,
    ),
    Case(
        "vla_jepa",
        qwen.vla_jepa,
        "model.qwen.model.model.visual",
        "model.predict_action",
        one_pass=True,
        red=_CLIP_RED,
    ),
    Case(
        "groot",
        qwen.groot,
        "_groot_model.backbone.model.model.visual",
        "_groot_model.get_action",
        batch=_square_all,
        preprocessor=qwen.groot_preprocessor,
        one_pass=True,
        missing={},
        red=_CLIP_RED,
    ),
    Case(
        "evo1",
        more.evo1,
        "model.embedder.model.vision_tower",
        "model.predict_action",
        one_pass=True,
        red=(0.485, 0.229),
    ),
    Case(
        "wall_x",
        qwen.wall_x,
        "model.visual",
        "model.forward",
        one_pass=True,
        missing={},
        red=_CLIP_RED,
    ),
)
BY_NAME = {case.name: case for case in CASES}
NOT_BUILT = {
    "molmoact2": "loads a checkpoint's folder with tokenizer, processor and FAST tokens, and takes "
    "the released sizes of actions alone. It has a ViT tower (from its code, not run)",
    "fastwam": "loads Wan's VAE and text encoder by name. Pictures go through that VAE, of "
    "convolutions; there is no ViT tower (from its code, not run)",
    "rewards: sarm, robometer, topreward, classifier": "no policies",
}
