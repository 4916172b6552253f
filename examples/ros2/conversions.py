"""Between arrays and the messages of sensor_msgs, without ROS: arrays in, fields of a message out.

Messages are anything that has their fields, so this runs and is tested where rclpy is not.

Axes: H W pixels, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC3": 3, "8UC1": 1}
"""Encodings that a picture is read from; 8UC3 is OpenCV's, blue first."""
FLOAT32 = 7
"""sensor_msgs/PointField.FLOAT32."""


def picture_of(message: Any) -> NDArray[np.uint8]:
    """A sensor_msgs/Image as (H, W, 3) uint8, red first.

    Raises:
        ValueError: An encoding that is no picture of 8 bits, or not as many bytes as it says.
    """
    count = CHANNELS.get(message.encoding)
    if count is None:
        known = ", ".join(CHANNELS)
        raise ValueError(f"image of encoding {message.encoding!r}: known are {known}")
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(bytes(message.data), np.uint8)
    if step < width * count or data.size != height * step:
        raise ValueError(
            f"image of {height} x {width}, {message.encoding}, has {data.size} bytes and a step of "
            f"{step}: expected a step of {width * count} or more, and {height} times that"
        )
    # Rows may be longer than the picture.
    picture_HWC = data.reshape(height, step)[:, : width * count].reshape(height, width, count)
    if count == 1:
        picture_HWC = picture_HWC.repeat(3, axis=2)
    blue_first = message.encoding in {"bgr8", "bgra8", "8UC3"}
    return np.ascontiguousarray(picture_HWC[..., 2::-1] if blue_first else picture_HWC[..., :3])


def intrinsics_of(message: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) of a sensor_msgs/CameraInfo in pixels of pictures of ``size`` (H, W).

    Integer coordinates are pixel centres, in ROS as here.

    Raises:
        ValueError: The camera is not calibrated, or is of pictures of another size.
    """
    matrix = [float(value) for value in message.k]
    if matrix[0] <= 0 or matrix[4] <= 0:
        raise ValueError("camera_info says that the camera is not calibrated: K is 0")
    said = (message.height, message.width)
    if said not in {size, (0, 0)}:
        raise ValueError(
            f"camera_info is of {said[0]} x {said[1]}, the image {size[0]} x {size[1]}"
        )
    return matrix[0], matrix[4], matrix[2], matrix[5]


def fill_depth(message: Any, metres_HW: NDArray[np.float32], header: Any) -> Any:
    """Makes a sensor_msgs/Image the map: 32FC1, metres, NaN where nothing is known (REP 118).

    ``header`` is the picture's own: its stamp and frame are the map's.
    """
    metres_HW = np.ascontiguousarray(metres_HW, dtype="<f4")
    message.header = header
    message.height, message.width = metres_HW.shape
    message.encoding, message.is_bigendian = "32FC1", 0
    message.step = 4 * message.width
    message.data = metres_HW.tobytes()
    return message


def fill_points(
    message: Any,
    metres_HW: NDArray[np.float32],
    intrinsics: tuple[float, float, float, float],
    header: Any,
    make_field: Any,
) -> Any:
    """Makes a sensor_msgs/PointCloud2 the map's points: x right, y down, z ahead, in metres.

    Organised as the picture, NaN where nothing is known, in the camera's optical frame (REP 103).
    ``make_field`` is sensor_msgs/PointField.
    """
    height, width = metres_HW.shape
    fx, fy, cx, cy = intrinsics
    x_W, y_H = np.arange(width) - cx, np.arange(height) - cy
    points_HW3 = np.stack(
        [x_W[None] / fx * metres_HW, y_H[:, None] / fy * metres_HW, metres_HW], axis=2
    ).astype("<f4")
    message.header = header
    message.height, message.width = height, width
    message.fields = [
        make_field(name=name, offset=4 * place, datatype=FLOAT32, count=1)
        for place, name in enumerate("xyz")
    ]
    message.is_bigendian, message.point_step, message.row_step = False, 12, 12 * width
    message.is_dense = bool(np.isfinite(points_HW3).all())
    message.data = points_HW3.tobytes()
    return message
