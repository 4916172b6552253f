r"""A ROS 2 node: depth and points of a camera, from a host's own tower.

    python examples/ros2/depth_node.py --ros-args -p host:=demo -p head:=demo \
        -r image:=/camera/image_rect -r camera_info:=/camera/camera_info

Takes rectified pictures and their camera_info; publishes ``depth`` (32FC1, metres) and ``points``,
with the picture's own stamp and frame. Not run by the tests, as ROS is not on the package index;
what makes its messages (``conversions.py``) is tested alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rclpy
from conversions import (  # type: ignore[import-not-found]
    fill_depth,
    fill_points,
    intrinsics_of,
    picture_of,
)
from PIL import Image as Picture
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from clipdepth_plugin import attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.shipped import load_head


class DepthNode(Node):  # type: ignore[misc]
    """Depth of each picture, with the last camera_info."""

    def __init__(self) -> None:
        super().__init__("clipdepth")
        host = load_host(self.declare_parameter("host", "demo").value)
        head = self.declare_parameter("head", "demo").value
        self._plugin = attach(host.model, load_head(head).eval())
        self._depth_of = PictureDepth(self._plugin, host.preprocessing)
        self._takes_camera = self._plugin.head.config.canonical_focal is not None
        self._camera: CameraInfo | None = None
        self._depth = self.create_publisher(Image, "depth", qos_profile_sensor_data)
        self._points = self.create_publisher(PointCloud2, "points", qos_profile_sensor_data)
        self.create_subscription(
            CameraInfo, "camera_info", self._on_camera, qos_profile_sensor_data
        )
        self.create_subscription(Image, "image", self._on_image, qos_profile_sensor_data)

    def _on_camera(self, message: CameraInfo) -> None:
        self._camera = message

    def _on_image(self, message: Image) -> None:
        if self._camera is None:
            self.get_logger().warning("no camera_info yet", throttle_duration_sec=5.0)
            return
        try:
            picture = picture_of(message)
            intrinsics = intrinsics_of(self._camera, picture.shape[:2])
            camera: Any = intrinsics if self._takes_camera else None
            (maps_CHW,) = self._depth_of([Picture.fromarray(picture)], camera)
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        metres_HW = maps_CHW[0].cpu().numpy().astype(np.float32)
        self._depth.publish(fill_depth(Image(), metres_HW, message.header))
        cloud = fill_points(PointCloud2(), metres_HW, intrinsics, message.header, PointField)
        self._points.publish(cloud)


def main() -> None:
    """Runs the node until it is stopped."""
    rclpy.init()
    node = DepthNode()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
