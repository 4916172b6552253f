"""Public door: ``HeadConfig``, the presets, and the decoders that a config may name."""

from clipdepth_plugin.decoders import compact, dual_path  # noqa: F401 (they register themselves)
from clipdepth_plugin.head_config import (
    DECODERS,
    Activation,
    ContextKind,
    HeadConfig,
    NormKind,
    Provenance,
    ResizeRule,
)
from clipdepth_plugin.presets import PRESETS, Preset, scale_levels

__all__ = [
    "DECODERS",
    "PRESETS",
    "Activation",
    "ContextKind",
    "HeadConfig",
    "NormKind",
    "Preset",
    "Provenance",
    "ResizeRule",
    "scale_levels",
]
