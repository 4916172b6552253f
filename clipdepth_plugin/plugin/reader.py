"""What the passes of a plug-in are read with, and what is said of their maps once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from clipdepth_plugin.adapters.connectors import Connector
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.lenses import LensCheck
from clipdepth_plugin.plugin.pass_graph import graphs_of

if TYPE_CHECKING:
    from clipdepth_plugin.fused.graphs import GraphCache
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead

logger = logging.getLogger(__name__)

RELATIVE = (
    "this head gives relative depth, no metres (config.metric is False): larger is farther, and "
    "1 / depth is known up to a scale and a shift of each view's own"
)


@dataclass
class Reader:
    """What the passes of a plug-in are read with.

    Attributes:
        head: The head.
        preprocessing: How the host makes views of its pictures; None where that is not known.
        connector: Finds what makes the host's visual tokens.
        lens: Checks the cameras that are given.
        stream_level: The level that streams compare; None: there are no streams.
        graphs: The head's CUDA graphs; None: it has none.
    """

    head: DepthHead | FusedHead
    preprocessing: Preprocessing | None
    connector: Callable[..., Connector]
    lens: LensCheck = field(default_factory=LensCheck)
    stream_level: int | None = None
    graphs: GraphCache | None = field(init=False)
    _said: bool = False
    _said_empty: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graphs = graphs_of(self.head)
        config = self.head.config
        self.says_unit = not config.metric or config.canonical_focal is not None

    def say_empty(self, views: Sequence[int]) -> None:
        """Says which views are pictures of one colour: each number once."""
        for view in views:
            if view not in self._said_empty:
                self._said_empty.add(view)
                logger.warning(
                    "view %d is a constant picture, such as a policy fills a missing camera in "
                    "with: it has no depth, its map is NaN (said once for each number of a view)",
                    view,
                )

    def say_assumed(self, size: Size, where: str = "") -> None:
        """Says what the maps' unit is where that is not plain: once, and not in compiled code.

        Which camera is assumed where none is given, by the size of a view, or that depth is
        relative.
        """
        config = self.head.config
        if not self.says_unit or self._said or torch.compiler.is_compiling():
            return
        self._said = True
        if not config.metric:
            logger.warning(RELATIVE)
            return
        logger.warning(
            "no camera given%s: the metres are those of a focal length of %g px at %d x %d; "
            "focal_px=... or intrinsics=... (clipdepth predict: --focal-px) give those of another",
            where,
            config.focal_at(size),
            *size,
        )
