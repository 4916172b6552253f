"""Metric depth from the vision tower that a multimodal model already runs.

head = DepthHead.from_pretrained("path-or-hub-id")
with attach(host, head) as plugin:
    out = host.generate(**inputs)
    metres = plugin.depth  # (B, 1, H, W) float32, metres

Names are imported when they are first used: the command line answers ``--help`` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.towers import find_towers
    from clipdepth_plugin.config import HeadConfig
    from clipdepth_plugin.errors import ClipDepthError
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.plugin.depth_plugin import DepthPlugin, attach
    from clipdepth_plugin.plugin.depth_tokens import DepthTokens
    from clipdepth_plugin.plugin.depth_tower import DepthTower
    from clipdepth_plugin.weights.spaceclip import load_spaceclip

__all__ = [
    "ClipDepthError",
    "DepthHead",
    "DepthPlugin",
    "DepthTokens",
    "DepthTower",
    "HeadConfig",
    "TowerFeatures",
    "attach",
    "find_towers",
    "load_spaceclip",
]

_HOMES = {
    "ClipDepthError": "errors",
    "DepthHead": "head",
    "DepthPlugin": "plugin.depth_plugin",
    "DepthTokens": "plugin.depth_tokens",
    "DepthTower": "plugin.depth_tower",
    "HeadConfig": "config",
    "TowerFeatures": "features",
    "attach": "plugin.depth_plugin",
    "find_towers": "adapters.towers",
    "load_spaceclip": "weights.spaceclip",
}
_SUBMODULES = frozenset({"config", "errors", "features", "geometry", "head", "ops", "shipped"})


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
