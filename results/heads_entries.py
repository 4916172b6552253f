"""The entries of the benchmark of heads, and the training run of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import heads_peers  # noqa: F401 (registers the peers' decoders)

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import load_config

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
FULLEST = "guided"
"""The entry that reads the most: its run decides what the shared token cache holds."""

VIEWS = 3
"""Of each picture in the cache, the least with which all of ``augment`` counts."""


@dataclass(frozen=True)
class Entry:
    """One head of the benchmark.

    Attributes:
        title: Its name in the tables.
        lr: Its peak learning rate.
        preset: Of its config.
        options: Fields of its config, beside those that all entries share.
        trained: Whether it is trained by steps, not fitted in closed form.
        separate: Whether it is a network of its own: its cost is its whole time.
    """

    title: str
    lr: float = 1e-3
    preset: str = "fast"
    options: dict[str, Any] = field(default_factory=dict)
    trained: bool = True
    separate: bool = False

    @property
    def head_options(self) -> dict[str, Any]:
        """Fields of its config; a closed form predicts no confidence."""
        return self.options | ({} if self.trained else {"confidence": False})

    @property
    def shares_cache(self) -> bool:
        """Whether the cache of the entry ``FULLEST`` has all that it reads."""
        fullest = ENTRIES[FULLEST]
        own, full = (
            HeadConfig(width=1, preset=one.preset, **one.options) for one in (self, fullest)
        )
        return {*own.levels} <= {*full.levels}


_TOKENS_ALONE = {"structural": False, "film": False}

ENTRIES: dict[str, Entry] = {
    "spaceclip": Entry("published, levels 2 1 0", 3e-4, "spaceclip", {"activation": "log"}),
    "spaceclip-middle": Entry(
        "published, levels 7 5 4", 3e-4, "spaceclip-middle", {"activation": "log"}
    ),
    "dpt": Entry("DPT", options={"decoder": "dpt", **_TOKENS_ALONE}),
    "probe": Entry("linear probe", 4e-3, options={"decoder": "probe", "structural": False}),
    "ridge": Entry("ridge", options={"decoder": "ridge", **_TOKENS_ALONE}, trained=False),
    "mobilenet": Entry(
        "separate MobileNetV3", 2e-3, options={"decoder": "mobilenet", **_TOKENS_ALONE},
        separate=True,
    ),
    "fast": Entry("`fast`", 2e-3),
    "guided": Entry("`guided`", 2e-3, "guided"),
}  # fmt: skip


def make_config(
    name: str,
    *,
    seed: int,
    steps: int,
    batch: int,
    side: int,
    path: Path = CONFIG,
    overrides: Sequence[str] = (),
) -> TrainConfig:
    """The training run of an entry: the benchmark's config with the entry's head.

    Args:
        name: Of the entry.
        seed: Of weights, order and augmentation: equal seeds give equal batches to all entries.
        steps: Optimiser steps.
        batch: Pictures in a step.
        side: Height and width of the tower's input and of the maps in the loss.
        path: The config whose mixture the entries share.
        overrides: Further fields, as ``clipdepth train`` takes them.
    """
    entry, shared = ENTRIES[name], load_config(path)
    assert shared.cache is not None
    folder = Path(shared.run).parent
    cache = f"{folder}/heads-tokens-{side}" + ("" if entry.shares_cache else f"-{name}")
    options = {f"head.options.{key}": value for key, value in entry.head_options.items()}
    fields = {
        "run": f"{folder}/heads/{name}-{side}-seed{seed}",
        "head.preset": entry.preset,
        **options,
        "optimiser.lr": entry.lr,
        "seed": seed,
        "steps": steps,
        "batch_size": batch,
        "input_size": [side, side],
        "output_size": [side, side],
        "cache.folder": cache,
        "cache.views": VIEWS,
    }
    if not entry.trained:
        fields["loss.confidence"] = 0.0
    given = [f"--{key}={json.dumps(value)}" for key, value in fields.items()]
    return load_config(path, [*given, *overrides])
