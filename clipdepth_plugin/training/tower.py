"""FrozenTower: the host's vision tower as a function from pixels to features.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.features import one_size
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.plugin.checks import check_fit
from clipdepth_plugin.plugin.framing import known_preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from clipdepth_plugin.adapters.passes import Wanted
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.training.config import TrainConfig


class FrozenTower:
    """A host's tower that gives features and never learns."""

    def __init__(
        self, name: str, host: nn.Module, path: str | None, preprocessing: Preprocessing | None
    ) -> None:
        """Freezes the host."""
        self.name = name if path is None else f"{name} ({path})"
        self.host = host.eval().requires_grad_(False)
        self.tower: Tower = choose_tower(host, path)
        self.preprocessing = known_preprocessing(self.tower, preprocessing)
        self.hashes = tower_hashes(self.tower)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of the tower's input."""
        (height, width), patch = self.preprocessing.size, self.tower.patch_size
        return height // patch[0], width // patch[1]

    def fingerprint(self) -> str:
        """Hash of every parameter and buffer of the tower: tokens depend on all of them."""
        digests = []
        for x in (*self.tower.module.parameters(), *self.tower.module.buffers()):
            data = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digests.append(hashlib.sha256(data.tobytes()).digest())
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()

    def reader(
        self, wanted: Wanted, autocast: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> Callable[[Tensor], TowerFeatures]:
        """A function (B, 3, H, W) -> the features that are wanted, without a graph."""
        recorder = PassRecorder(wanted, TowerPass)
        taps = Taps(self.host, self.tower, recorder, owner=recorder)
        runner = TowerRunner(self.tower, taps, recorder)

        def read(pixels_B3HW: Tensor) -> TowerFeatures:
            with autocast(), torch.no_grad():
                return one_size(runner.run(pixels_B3HW, {}).features)

        return read


def load_tower(config: TrainConfig) -> FrozenTower:
    """Loads the host of a run."""
    loaded = load_host(config.host)
    tower = FrozenTower(config.host, loaded.model, config.tower, loaded.preprocessing)
    if config.input_size is not None:
        tower.preprocessing = tower.preprocessing.at_size(config.input_size)
    if config.resize == "whole":
        tower.preprocessing = tower.preprocessing.whole()
    return tower


def make_head(
    config: TrainConfig, tower: FrozenTower, head_class: type[DepthHead] = DepthHead
) -> DepthHead:
    """The head to train: new, or the saved one; checked against the tower.

    Its config records input size and resize rule; a saved head's canonical camera is carried to
    that size.
    """
    settings = config.head
    if settings.init is not None:
        head = head_class.from_pretrained(settings.init)
    else:
        head = head_class.for_host(
            tower.host, settings.preset, tower=tower.tower.path, **settings.options
        )
    check_fit(head, tower.tower)
    head.config = head.config.trained_on(tower.preprocessing.size, config.resize)
    return head
