"""LeRobot's policies prepare their own pictures; their config says how.

pi0 and SmolVLA: each camera is resized with its shape kept and padded at the left and above
(``resize_with_pad``), whatever the processor of the language model inside would do.
"""

from __future__ import annotations

from torch import nn

from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing, pair


def from_policy(host: nn.Module) -> Preprocessing | None:
    """How a policy prepares pictures; None where its config does not say."""
    config = getattr(host, "config", None)
    said = getattr(config, "resize_imgs_with_padding", None)
    size = pair(said) if isinstance(said, list | tuple) else None
    return None if size is None else Preprocessing(*HALF_NORMALISATION, size, "fit_end")
