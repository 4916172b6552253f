"""``clipdepth app``: a web page that shows depth."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.options import (
    DeviceOption,
    HeadOption,
    HostOption,
    OtherTowerOption,
    TowerOption,
    head_for,
)

if TYPE_CHECKING:
    from clipdepth_plugin.app.model import DepthModel
    from clipdepth_plugin.app.session import RenderVideo


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """The options of the command."""

    host: HostOption
    head: HeadOption = ""
    device: DeviceOption = "cpu"
    tower: TowerOption = None
    other_tower: OtherTowerOption = False
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Who can open it: 127.0.0.1, this machine alone; 0.0.0.0, whoever reaches it.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860


def serve_page(options: AppOptions, console: Console) -> int:
    """A web page that shows depth of a picture, a short video or the webcam.

    Depth with a scale in metres, confidence, a 3D view, metres under the pointer and between two
    points, the lens as a slider, files to download, and what it cost. It runs until Ctrl-C, and
    keeps nothing.

    Exit code: 0, Ctrl-C ended it. 2, the host, the head or an option is wrong. 3, an unexpected
    error.
    """
    from clipdepth_plugin.adapters.loading import load_host
    from clipdepth_plugin.app.model import DepthModel
    from clipdepth_plugin.app.serving import served
    from clipdepth_plugin.cli.device import find_device
    from clipdepth_plugin.shipped import load_head

    head_name = head_for(options.host, options.head)
    with loading(console, options.host, head_name):
        device, head, host = (
            find_device(options.device),
            load_head(head_name),
            load_host(options.host),
        )
        model = DepthModel(
            f"{head_name} on {host.label}",
            host.model.to(device),
            head.to(device),
            host.preprocessing,
            tower=options.tower,
            other_tower=options.other_tower,
        )
        # The first pass is slower than all others; the page shows what a picture costs.
        noise_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        model(Image.fromarray(noise_HW3), None)
    with served(model, renderer(model), listen=options.listen, port=options.port) as address:
        console.print(f"open {address} (Ctrl-C ends it)")
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("ended")
    return 0


def renderer(model: DepthModel) -> RenderVideo:
    """``predict`` of videos, for the page."""
    from clipdepth_plugin.app.session import MAX_PIXELS, MOST_FRAMES
    from clipdepth_plugin.cli.predict_cameras import View, ViewMaker
    from clipdepth_plugin.cli.predict_files import Predicted
    from clipdepth_plugin.cli.predict_inputs import OUR_VIDEO_SUFFIX
    from clipdepth_plugin.cli.predict_sources import Maps
    from clipdepth_plugin.cli.predict_videos import VideoPrediction

    def predict(views: list[View]) -> list[Predicted]:
        found = [(view, model(view.image, view.focal_px)) for view in views]
        return [
            Predicted(view, Maps(depth.metres_HW, True, depth.confidence_HW))
            for view, depth in found
        ]

    def render(
        path: Path, folder: Path, focal_px: float | None, advance: Callable[[float], object]
    ) -> tuple[Path, str]:
        done = 0

        def add(count: int, total: int | None) -> None:
            nonlocal done
            done += count
            advance(done / min(total or MOST_FRAMES, MOST_FRAMES))

        make_view = ViewMaker(None, focal_px, undistort=False)
        prediction = VideoPrediction(
            *(folder, predict, make_view), batch_size=1, max_pixels=MAX_PIXELS, write_frame=None
        )
        ended = prediction(path, lambda: done >= MOST_FRAMES, add)
        said = ended.said if ended.error is None else f"{ended.said}; {ended.error}"
        return folder / f"{path.stem}{OUR_VIDEO_SUFFIX}", said

    return render
