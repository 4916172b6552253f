"""LeRobot's policies prepare their own pictures; their config says how.

SmolVLA, and pi0 up to 2025: resized with the shape kept and padded at the left and above. pi0 and
pi0.5 since, after OpenPI: padded around. The language model's own processor is not used.
"""

from __future__ import annotations

from torch import nn

from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing, pair
from clipdepth_plugin.adapters.structure import modules_around


def from_policy(host: nn.Module, path: str = "") -> Preprocessing | None:
    """How a policy prepares pictures; None where no config says."""
    on_the_way = (*modules_around(host, path), host.get_submodule(path))
    said = (_said_by(getattr(module, "config", None)) for module in on_the_way)
    return next((one for one in said if one is not None), None)


def _said_by(config: object) -> Preprocessing | None:
    width_height = _pair_of(config, "resize_imgs_with_padding")
    if width_height is not None:
        return Preprocessing(*HALF_NORMALISATION, (width_height[1], width_height[0]), "fit_end")
    # A name that others may give to something else.
    if type(config).__module__.partition(".")[0] != "lerobot":
        return None
    size = _pair_of(config, "image_resolution")
    return None if size is None else Preprocessing(*HALF_NORMALISATION, size, "fit_middle")


def _pair_of(config: object, name: str) -> tuple[int, int] | None:
    said = getattr(config, name, None)
    return pair(said) if isinstance(said, list | tuple) else None
