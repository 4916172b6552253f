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
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.plugin.checks import check_fit
from clipdepth_plugin.plugin.framing import known_preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.adapters.wanted import Wanted
    from clipdepth_plugin.features import Run
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
        """Patch grid (h, w) of views of the preprocessing's size."""
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
    ) -> Callable[[Sequence[Tensor]], list[Run]]:
        """A function: views (3, H, W) of any sizes -> the features wanted of them, no graph."""
        recorder = PassRecorder(wanted, TowerPass)
        taps = Taps(self.host, self.tower, recorder, owner=recorder)
        runner = TowerRunner(self.tower, taps, recorder)

        def read(views: Sequence[Tensor]) -> list[Run]:
            with autocast(), torch.no_grad():
                return runner.runs(views)

        return read


def load_tower(config: TrainConfig) -> FrozenTower:
    """Loads the host of a run."""
    loaded = load_host(config.host)
    tower = FrozenTower(config.host, loaded.model, config.tower, loaded.preprocessing)
    if config.input_size is not None:
        tower.preprocessing = tower.preprocessing.at_size(config.input_size)
    if config.resize == "whole":
        if not tower.preprocessing.fixed_size:
            raise TrainingError(
                "input_size: resize: whole squashes every picture to one size, and this host's "
                "views have none: give one, or resize: host"
            )
        tower.preprocessing = tower.preprocessing.whole()
    if tower.preprocessing.fixed_size:
        tower.tower.rule.pack([torch.zeros(3, *tower.preprocessing.size)])  # refuses odd sizes
    return tower


def make_head(
    config: TrainConfig, tower: FrozenTower, head_class: type[DepthHead] = DepthHead
) -> DepthHead:
    """The head to train: new, or the saved one; checked against the tower.

    Its config records input size and resize rule; a saved head's canonical camera is carried to
    that size. Where views have sizes of their own none is recorded, and the camera is any size's.
    """
    settings = config.head
    if settings.init is not None:
        head = head_class.from_pretrained(settings.init)
    else:
        head = head_class.for_host(
            tower.host, settings.preset, tower=tower.tower.path, **settings.options
        )
    check_fit(head, tower.tower)
    shown = tower.preprocessing
    head.config = head.config.trained_on(shown.size if shown.fixed_size else None, config.resize)
    return head
