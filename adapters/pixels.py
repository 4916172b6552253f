"""The pixels that a vision tower takes.

Axes: B pictures, H W pixels, C the three colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import ImageError

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def to_pixels(images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """Turns pictures into the normalised pixels of a tower.

    The whole picture is squashed to the tower's input size (by the host's own filter), whatever
    ``preprocessing.resize`` says: a centre crop would leave the margins without depth, while a
    map of a squashed picture is stretched back to all of it. Depth heads are trained that way
    (``TrainConfig.resize``; SPACE-CLIP, arXiv 2601.17657, resizes the input bicubically).

    Args:
        images: B RGB pictures of any sizes.
        preprocessing: Input size, interpolation, mean and std of the tower.

    Returns:
        (B, 3, H, W) float32, (rgb / 255 - mean) / std.

    Raises:
        ImageError: A picture is not RGB; ``load_image`` gives RGB.
    """
    height, width = preprocessing.size
    resampling = _RESAMPLING[preprocessing.interpolation]
    rgb_BHWC = np.empty((len(images), height, width, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        if image.mode != "RGB":
            raise ImageError(
                f"picture {index} has mode {image.mode}, expected RGB; read it with load_image"
            )
        rgb_BHWC[index] = np.asarray(image.resize((width, height), resampling))
    mean_C11 = torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1)
    std_C11 = torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1)
    pixels_BCHW = torch.from_numpy(rgb_BHWC).permute(0, 3, 1, 2).to(torch.float32) / 255.0
    return ((pixels_BCHW - mean_C11) / std_C11).contiguous()
