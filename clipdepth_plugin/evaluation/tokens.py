"""All levels of a tower at once, for what looks at a tower without a head.

Axes: B views, H W pixels, N patch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass, Wanted
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.errors import FeaturesError
from clipdepth_plugin.features import one_size

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.towers import Tower
    from clipdepth_plugin.config import ContextKind
    from clipdepth_plugin.features import TowerFeatures


class TowerTokens:
    """A tower as a function from pixels to features, tapped only while it runs.

    Attributes:
        tower: The tower.
        levels: The levels it gives, ascending.
    """

    def __init__(
        self, tower: Tower, levels: Sequence[int] | None = None, context: ContextKind | None = None
    ) -> None:
        """Checks what is asked for.

        Args:
            tower: From ``choose_tower``.
            levels: Levels to give; None gives all, 0 to ``tower.depth``.
            context: Context kind to give, or None.

        Raises:
            FeaturesError: A level or context that the tower does not have.
        """
        wanted = range(tower.depth + 1) if levels is None else sorted(set(levels))
        self.tower = tower
        self.levels = tuple(wanted)
        if not self.levels or self.levels[0] < 0 or self.levels[-1] > tower.depth:
            raise FeaturesError(
                f"levels {list(self.levels)}: the tower has levels 0 to {tower.depth} ({tower})"
            )
        if context is not None and context not in tower.contexts:
            raise FeaturesError(
                f"context {context!r}: the tower has {', '.join(tower.contexts)} ({tower})"
            )
        recorder = PassRecorder(Wanted.of(tower, self.levels, context), TowerPass)
        taps = Taps(tower.module, tower, recorder, owner=self)
        self._runner = TowerRunner(tower, taps, recorder)

    def __call__(self, pixels_B3HW: Tensor) -> TowerFeatures:
        """Runs the tower, no further than the last level, without a graph.

        Args:
            pixels_B3HW: Normalised as the tower takes them; carried to its device and dtype.

        Returns:
            ``levels``, each (B, N, D), and the context.

        Raises:
            NoDepthError: A tap did not fire.
        """
        return one_size(self._runner.run(pixels_B3HW, {}).features)
