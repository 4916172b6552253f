"""Measures streams with the shipped head: flicker, error, lag, cost; writes streams.json and .md.

    python results/streams.py RENDERED              # everything
    python results/streams.py RENDERED --cost-only  # the cost anew, the rest as it is stored
    python results/streams.py --page                # streams.md from streams.json

CLIPDEPTH_DATA has the videos tum, hololens and kitchen. RENDERED is what streams_render.py renders:
videos NN_KIND of 30 frames NAME.jpg (256 x 192) with NAME.depth.png (16 bits, 3000 a metre),
intrinsics.json (name -> [fx, fy, cx, cy]) and poses.json (name -> 4 x 4, camera to world). Each has
a room of its own. KIND "camera": the camera sways by some centimetres and degrees a frame.
"object": it stands still, and a textured box crosses the view from frame 8 on, coming nearer.
"both": both.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from streams_approach import measure_approaches
from streams_measure import Array, Video, absrel, alignment_error, lag, open_video
from streams_page import Cost, Costs, Figures, Measured, Row, page

from clipdepth_plugin import DepthHead, DepthPlugin
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import shown
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.rounds import Variant, run_rounds, wall_timer
from clipdepth_plugin.latency.subject import make_subject
from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.stabilising import Stabiliser
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.shipped import load_head

HERE = Path(__file__).resolve().parent
STORED = HERE / "streams.json"
REAL = ("tum", "hololens", "kitchen")
ROUNDS = 40


def make_plugin() -> DepthPlugin:
    """The demo's head beside its tower."""
    host = load_host("demo")
    head = load_head("demo").eval()
    return DepthPlugin(host.model, head, processor=host.preprocessing)


def maps_of(plugin: DepthPlugin, video: Video, name: str) -> tuple[list[Array], list[Array]]:
    """Metres (H, W) of each frame, plain and of a stream, from the same tower passes."""
    framing = PictureDepth(plugin).framing
    stream = plugin.stream(name, view="all")
    raw: list[Array] = []
    steady: list[Array] = []
    for path in video.pictures:
        with Image.open(path) as opened:
            views, placed = shown([opened.convert("RGB")], framing)
        tower_pass = plugin.views_pass(list(views))
        for maps, one in ((raw, tower_pass), (steady, stream.of(tower_pass))):
            (map_CHW,) = one.in_images(placed, video.camera, None)
            maps.append(map_CHW[0].double().numpy())
    return raw, steady


def figures(video: Video, maps: Sequence[Array]) -> Figures:
    """A video's."""
    return Figures(
        alignment_error=alignment_error(video, maps),
        absrel=absrel(video, maps),
        aligned=absrel(video, maps, aligned=True),
    )


def measure(plugin: DepthPlugin, folder: Path, name: str, *, tuned: bool) -> Row:
    """One video."""
    video = open_video(folder)
    raw, steady = maps_of(plugin, video, name)
    return Row(
        name=name,
        tuned=tuned,
        frames=len(video.pictures),
        pairs=sum(motion is not None for motion in video.motion),
        raw=figures(video, raw),
        steady=figures(video, steady),
        lag=lag(video, steady, raw),
    )


def videos(rendered: Path) -> list[tuple[str, Path, bool]]:
    """Name, folder and whether numbers were chosen on it: those that they were not first."""
    data = Path(os.environ["CLIPDEPTH_DATA"])
    made = sorted(path.parent for path in rendered.glob("*/poses.json"))
    found = [
        (f"rendered/{folder.name}", folder, index < len(made) // 2)
        for index, folder in enumerate(made)
    ]
    for tuned, split in ((True, "train"), (False, "test")):
        for name in REAL:
            (folder,) = (one for one in (data / name / split).iterdir() if one.is_dir())
            found.append((f"{name}/{split}", folder, tuned))
    return sorted(found, key=lambda one: one[2])


def cost_variants(plugin: DepthPlugin, host: str) -> list[Variant]:
    """The tower's forward, and all that a stream adds to reading its depth."""
    pixels = torch.rand(1, 3, 224, 224)
    tower_pass = plugin.tower_pass(pixels)
    level = min(tower_pass.wanted.levels, key=lambda k: abs(k - plugin.tower.depth / 2))
    (features,) = tower_pass.batches
    tokens_ND, ((native,), _) = features.levels[level][0], tower_pass._read()
    stabilise = Stabiliser()

    def stream() -> None:
        stabilise(native.depth, native.log_scale, signatures(tokens_ND), features.grid)

    tower = plugin.tower.module
    return [Variant(f"{host}: tower", lambda: tower(pixels)), Variant(f"{host}: stream", stream)]


def measure_cost(demo: DepthPlugin) -> Costs:
    """The demo's tower and that of the project's other bounds, in the same rounds."""
    model = make_subject(load_host("config:vit-b-16").model, label="", scope="tower").model
    head = DepthHead.for_host(model, preset="fast", confidence=True).eval()
    hosts = {"ViT-S/14 (demo)": demo, "CLIP ViT-B/16": DepthPlugin(model, head)}
    variants = [one for host, plugin in hosts.items() for one in cost_variants(plugin, host)]
    with torch.no_grad():
        times = run_rounds(variants, ROUNDS, wall_timer(), warmup=3)

    def of(values: Array) -> tuple[float, float, float]:
        interval = median_interval(values)
        return interval.median, interval.low, interval.high

    rows = []
    for host in hosts:
        tower, stream = times[f"{host}: tower"], times[f"{host}: stream"]
        shares = of(100 * stream / tower)
        rows.append(
            Cost(host=host, tower_ms=of(1e3 * tower), stream_ms=of(1e3 * stream), percent=shares)
        )
    environment = describe_environment(("python", "results/streams.py"), "cpu", "float32")
    return Costs(rows=tuple(rows), rounds=ROUNDS, environment=environment)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rendered", nargs="?", type=Path)
    parser.add_argument("--cost-only", action="store_true")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page or given.cost_only:
        measured = Measured.model_validate_json(STORED.read_text("utf-8"))
        if given.cost_only:
            measured = measured.model_copy(update={"cost": measure_cost(make_plugin())})
        write(measured)
        return
    plugin = make_plugin()
    environment = describe_environment(("python", "results/streams.py"), "cpu", "float32")
    measured = Measured(
        rows=(),
        approaches=measure_approaches(),
        environment=environment,
        cost=measure_cost(plugin),
    )
    for name, folder, tuned in videos(given.rendered):
        row = measure(plugin, folder, name, tuned=tuned)
        measured = measured.model_copy(update={"rows": (*measured.rows, row)})
        write(measured)


def write(measured: Measured) -> None:
    """The figures and their page."""
    STORED.write_text(measured.model_dump_json(indent=1) + "\n", "utf-8")
    (HERE / "streams.md").write_text(page(measured), "utf-8")


if __name__ == "__main__":
    main()
