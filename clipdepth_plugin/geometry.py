"""Public door: point clouds, and where a tower's view lies in the user's image."""

from clipdepth_plugin.arguments import Intrinsics, Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry, depth_to_points

__all__ = ["ImageViews", "Intrinsics", "Size", "ViewGeometry", "depth_to_points"]
