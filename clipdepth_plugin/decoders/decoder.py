"""The decoder protocol: what turns a head's features into depth, and its registry.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import ConfigError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head_config import DECODERS, HeadConfig


class Decoder(nn.Module, ABC):
    """Features of a tower in, depth out: all of a head that has weights.

    A new decoder is one file: a subclass with ``@register_decoder(name)``. A config then names it
    (``HeadConfig.decoder``), a preset in ``presets.PRESETS`` may set it, and ``fused.forms`` may
    register an inference form. Its constructor takes the ``HeadConfig`` alone.
    """

    @classmethod
    def check(cls, config: HeadConfig) -> None:
        """Whether it can be built from a config; called for each new config.

        Raises:
            ValueError: It cannot; names the field and what to change.
        """

    @classmethod
    @abstractmethod
    def upsampling(cls, config: HeadConfig) -> int:
        """Native output size over patch grid."""

    @classmethod
    def reads_pixels(cls, config: HeadConfig) -> bool:  # noqa: ARG003 (few decoders do)
        """Whether it reads the tower's input pixels beside its tokens."""
        return False

    @abstractmethod
    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,
    ) -> DepthEstimate:
        """Depth of each view.

        Args:
            features: ``config.levels``, the context with ``config.film`` and the pixels with
                ``reads_pixels``; checked, in the weights' dtype.
            size: Output (H, W); None gives the native size.
            auxiliary: Whether to run the auxiliary outputs.

        Returns:
            (B, 1, H, W) float32 maps.
        """

    def auxiliary_readouts(self) -> Sequence[nn.Module]:
        """The modules behind ``DepthEstimate.auxiliary``, in order.

        Training freezes those that the loss does not weigh.
        """
        return ()

    def level_norms(self) -> Mapping[int, Sequence[nn.LayerNorm]]:
        """Level -> the layer norms that read its tokens first.

        Training sets their first scale and shift from the tokens it sees.
        """
        return {}


D = TypeVar("D", bound=type[Decoder])


def register_decoder(name: str) -> Callable[[D], D]:
    """Registers a decoder class under the name that ``HeadConfig.decoder`` takes."""

    def register(decoder: D) -> D:
        known = DECODERS.get(name)
        if known is not None and getattr(known, "__qualname__", None) != decoder.__qualname__:
            raise ConfigError(f"decoder {name!r} is registered already: {known}; take another name")
        DECODERS[name] = decoder
        return decoder

    return register
