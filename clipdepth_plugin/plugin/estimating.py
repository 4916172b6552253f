"""A head on the features of a pass: whether it may run there, and whether its depth is sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from clipdepth_plugin.features import TowerFeatures, Views
from clipdepth_plugin.maps.placing import at_size, seen_size

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


def check_mode(head: DepthHead | FusedHead) -> None:
    """Whether reading depth would leave the head as it is.

    Raises:
        HeadMismatchError: It is in training mode.
    """
    if head.training:
        raise HeadMismatchError(
            "the head is in training mode, where reading depth would change its batch norms: "
            "call head.eval() (or plugin.eval()) first; to train, call plugin(pixels) or "
            "head(features)"
        )


def estimate(
    head: DepthHead | FusedHead,
    features: TowerFeatures,
    size: tuple[int, int] | None = None,
) -> DepthEstimate:
    """Depth, and confidence where the head has it.

    By the head's own call where that gives all that it knows: the user may have hooked it.
    """
    given: dict[str, Any] = {}
    if size is not None:
        given["size"] = size
    if head.config.confidence:
        return head.estimate(features, **given)
    return DepthEstimate(head(features, **given))


def check_finite(maps: Sequence[Tensor]) -> None:
    """Whether the depth of every view is finite; waits for the device.

    Args:
        maps: (B, 1, H, W) metres, one for each batch of views.

    Raises:
        NoDepthError: Names the views where it is not.
    """
    # One pass over the maps: a sum is finite only where all of it is, and else it is looked at.
    if bool(torch.stack([one_B1HW.sum() for one_B1HW in maps]).isfinite().all()):
        return
    finite_B = torch.cat([one_B1HW.isfinite().flatten(1).all(dim=1) for one_B1HW in maps])
    if not bool(finite_B.all()):
        odd = (~finite_B).nonzero().flatten().tolist()
        raise NoDepthError(
            f"the depth of views {odd} is not finite: NaN or infinite pixels or weights, or a "
            "tower that overflows in half precision (run it in bfloat16 or float32)"
        )


def _device_of(module: nn.Module) -> torch.device | None:
    """Of its first parameter; ``next(module.parameters())`` goes through a list of all modules."""
    for name in module._parameters:
        parameter = module._parameters[name]
        if parameter is not None:
            return parameter.device
    for name in module._modules:
        child = module._modules[name]
        if child is not None and (device := _device_of(child)) is not None:
            return device
    return None


def on_heads_device(features: TowerFeatures, head: DepthHead | FusedHead) -> TowerFeatures:
    """Features on the head's device, for towers that are spread over several.

    Raises:
        HeadMismatchError: The head is on none of the tower's devices.
    """
    device = _device_of(head)
    for x in (*features.levels.values(), features.context, features.pixels):
        if x is not None and x.device != device:
            break
    else:
        return features
    devices = {x_BND.device for x_BND in features.levels.values()}
    if device not in devices:
        elsewhere = str(next(iter(devices)))
        raise HeadMismatchError(
            f"the head is on {device}, the tower on {elsewhere}: head.to({elsewhere!r})"
        )
    return TowerFeatures(
        {level: x_BND.to(device) for level, x_BND in features.levels.items()},
        None if features.context is None else features.context.to(device),
        features.grid,
        None if features.pixels is None else features.pixels.to(device),
    )


def estimate_whole(
    head: DepthHead | FusedHead,
    features: TowerFeatures,
    size: Size,
    *,
    patch_size: Size,
    pixel_size: Size,
    auxiliary: bool = False,
) -> DepthEstimate:
    """A head's maps of the whole of the tower's input, as training and evaluation take them.

    ``estimate(head, features, size=size)``, but where patches leave a rim of the input unseen:
    there the maps are put where ``plugin.predict(size=...)`` puts them.

    Args:
        head: Of these features.
        features: Views of one size.
        size: (H, W) of the maps.
        patch_size: The tower's.
        pixel_size: (H, W) of the tower's input.
        auxiliary: Whether to give the auxiliary maps; not of a fused head.
    """
    views = Views(features.batch, features.grid, pixel_size)
    all_seen = seen_size(views, patch_size) == pixel_size
    at_once = size if all_seen else None
    if auxiliary:
        native: DepthEstimate = cast("DepthHead", head).estimate(features, at_once, auxiliary=True)
    else:
        native = estimate(head, features, size=at_once)
    if all_seen:
        return native

    def placed(map_B1HW: Tensor) -> Tensor:
        return at_size([(map_B1HW, views)], patch_size, size)

    return DepthEstimate(
        placed(native.metres),
        None if native.log_scale is None else placed(native.log_scale),
        tuple(map(placed, native.auxiliary)),
    )
