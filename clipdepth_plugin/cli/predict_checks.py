"""What the options of ``clipdepth predict`` and its head must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdepth_plugin.cli.predict_sources import MapSource, Says
from clipdepth_plugin.errors import HeadMismatchError

if TYPE_CHECKING:
    from clipdepth_plugin.cli.predict import PredictOptions


def needs_camera(options: PredictOptions) -> str | None:
    """The option that can't do without the pictures' cameras."""
    wanted = {"--ply": options.ply, "--glb": options.glb}
    return next((name for name, is_given in wanted.items() if is_given), None)


def reads_focal(says: Says) -> bool:
    """Whether the focal length changes the metres."""
    return says.metric and says.canonical_focal is not None


def check_camera(source: MapSource, options: PredictOptions) -> None:
    """Refuses options that the head can't follow, or that would do nothing.

    Raises:
        HeadMismatchError: There is one.
    """
    name, says, needing = source.name, source.says, needs_camera(options)
    if options.confidence and not says.confidence:
        raise HeadMismatchError(
            f"--confidence: {name} predicts none (head.options.confidence: true in its "
            "training config would); leave the option out"
        )
    if needing is not None and not says.metric:
        raise HeadMismatchError(
            f"{needing}: {name} gives relative depth (config.metric is False), which has no shape "
            "in metres; leave the option out"
        )
    given = "--focal-px" if options.focal_px is not None else "--intrinsics"
    if options.focal_px is None and (options.intrinsics is None or options.undistort):
        return
    if not says.metric:
        raise HeadMismatchError(
            f"{given}: {name} gives relative depth (config.metric is False), which no "
            "camera turns into metres; leave the option out"
        )
    if says.canonical_focal is None and needing is None:
        raise HeadMismatchError(
            f"{given}: {name} was trained without a canonical camera, so its metres "
            "do not depend on the focal length; leave the option out"
        )
