"""The heads that ``results/ladder.md`` compares, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipdepth_plugin.evaluation.peers import DPTHead, LinearProbeHead
from clipdepth_plugin.head import DepthHead

if TYPE_CHECKING:
    from torch import nn

    from clipdepth_plugin.config import Preset


@dataclass(frozen=True)
class Rung:
    """One head of the ladder.

    Attributes:
        title: What it is called in the table.
        lr: Its learning rate.
        preset: What its config starts from.
        options: Fields of its config.
        auxiliary: Weights of its auxiliary outputs in the loss.
        gradient: Weight of gradient matching in the loss.
        standardise: Pictures by which its level norms begin (``HeadSettings.standardise``).
        kind: Its class.
    """

    title: str
    lr: float
    preset: Preset
    options: dict[str, Any] = field(default_factory=dict)
    auxiliary: tuple[float, ...] = ()
    gradient: float = 0.0
    standardise: int = 0
    kind: type[DepthHead] = DepthHead

    def make(self, host: nn.Module) -> DepthHead:
        """A new one that fits a host."""
        return self.kind.for_host(host, self.preset, **self.options)


_GRADIENT = 2.0
"""The best of 0, 2 and 10 for `guided` on frames held out of kitchen/train and on libero/val."""

_FOUR_LEVELS: dict[str, Any] = {"structural": False}

RUNGS: dict[str, Rung] = {
    "spaceclip": Rung("published, levels 2, 1, 0", 3e-4, "spaceclip", auxiliary=(0.10, 0.05)),
    "spaceclip-middle": Rung(
        "published, levels 7, 5, 4", 3e-4, "spaceclip-middle", auxiliary=(0.10, 0.05)
    ),
    "dpt": Rung("DPT neck and head", 1e-3, "fast", _FOUR_LEVELS, gradient=_GRADIENT, kind=DPTHead),
    "probe": Rung(
        "linear probe, 4 levels",
        4e-3,
        "fast",
        _FOUR_LEVELS,
        gradient=_GRADIENT,
        kind=LinearProbeHead,
    ),
    "fast": Rung("`fast`", 1e-3, "fast", gradient=_GRADIENT, standardise=64),
    "guided": Rung("`guided`", 1e-3, "guided", gradient=_GRADIENT, standardise=64),
}

VARIANTS: dict[str, Rung] = {
    f"fast-{activation}": Rung(
        f"`{activation}`", 1e-3, "fast", {"activation": activation}, gradient=_GRADIENT
    )
    for activation in ("softplus", "bins")
}
"""What `fast` might be instead: with other activations; its own is ``log``."""
