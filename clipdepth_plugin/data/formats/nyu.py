"""NYU Depth V2 by a list, over the sync folder that BTS offers."""

from __future__ import annotations

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.config import register_format
from clipdepth_plugin.data.listed import FIELDS, Line, ListedSet
from clipdepth_plugin.data.sample import NYU_CAMERA, NYU_SIZE, rescaled
from clipdepth_plugin.lenses import centred


@register_format("nyu", reads=FIELDS, needs={"files"})
class NyuList(ListedSet):
    """The listed frames."""

    depth_scale = 1000.0
    max_depth = 10.0

    def camera(self, line: Line, size: tuple[int, int]) -> Intrinsics | None:
        """See ``ListedSet``."""
        return nyu_camera(line.focal, size)


def nyu_camera(focal: float | None, size: tuple[int, int]) -> Intrinsics | None:
    """The camera of an NYU picture, stored at ``size``.

    A list's focal length is in pixels of the full 640 x 480 picture. 518.86 stands for the data
    set's own camera, whose centre is known too; another one is taken with the picture's middle.
    """
    if focal is None:
        return None
    own = abs(focal - NYU_CAMERA[0]) < 0.5
    full = NYU_CAMERA if own else centred(focal, NYU_SIZE)
    return rescaled(full, NYU_SIZE, size)
