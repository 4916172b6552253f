"""A picture and a film for the page of ``clipdepth app``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (48, 64)
CANONICAL: dict[str, Any] = {"confidence": True, "canonical_focal": 40.0, "input_size": (32, 32)}
"""Of a head whose metres follow from the lens."""


def picture(path: Path, *, size: tuple[int, int] = SIZE, seed: int = 0, **saving: Any) -> Path:
    ramp_HW = np.linspace(0, 200, size[0])[:, None] + np.zeros(size)
    noise_HW3 = np.random.default_rng(seed).integers(0, 55, (*size, 3))
    Image.fromarray((ramp_HW[..., None] + noise_HW3).astype(np.uint8)).save(path, **saving)
    return path


def film(path: Path, count: int = 12, size: tuple[int, int] = SIZE) -> Path:
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "bgr0"
        for _ in range(count):
            frame = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
