"""``clipdepth predict``: pictures and videos in, depth maps out."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.options import head_for
from clipdepth_plugin.cli.predict_cameras import ViewMaker
from clipdepth_plugin.cli.predict_inputs import Inputs, find_inputs
from clipdepth_plugin.cli.predict_options import (
    PredictOptions,
    check_inputs,
    check_options,
    check_source,
)
from clipdepth_plugin.cli.predict_sources import MapSource, find_source, frames_in_order

if TYPE_CHECKING:
    from clipdepth_plugin.cli.predict_files import Wanted
    from clipdepth_plugin.cli.predict_rgbd import RgbdFolder


def predict(options: PredictOptions, console: Console) -> int:
    """Write depth maps of pictures and videos.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture. Those of an earlier
    run are replaced; other files of these names (the truth of an RGB-D folder has them) only with
    --overwrite. A picture of one colour has no depth: its maps are 0, and it is named.

    For each video: NAME.colour.mp4, picture and depth side by side, with the video's frame times
    and sound; with --frames also the files of each frame. Ctrl-C ends it after the frame that is
    being done: what is written by then is whole.

    With --rgbd, all of them also become frames of an RGB-D folder as clipdepth label writes it:
    DIR/train/SEQUENCE/FRAME.depth.png, the picture, intrinsics.json (null: not known), and
    meta.json, which says whose depth it is.

    A head of relative depth (metric: false) gives no metres: for it NAME.inverse.png (16-bit, 1 to
    65535 linear in inverse depth with a scale and shift of each picture's own, 0 is no depth)
    stands in place of NAME.depth.png, NAME.inverse.npy in place of NAME.npy, and the colours have
    no scale of metres.

    With --stream, depth is stabilised over the frames of each video and each folder, which must be
    in order; a cut in them is noticed.

    Exit code: 0, all is done. 1, some could not be read, or Ctrl-C ended it; they are named at the
    end, the others are done. 2, the host, the head or the input is wrong, and nothing was written;
    or a map could not be written, and those before are done; the message says which. 3, an
    unexpected error.
    """
    from clipdepth_plugin.cli.predict_run import Run

    Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the bound
    if options.host == "demo" and options.head is None and options.exported is None:
        options = dataclasses.replace(options, head=head_for(options.host, ""))
    check_options(options)
    inputs = _checked_inputs(options)
    names = (options.host, options.head, options.exported)
    with loading(console, *(str(name) for name in names if name is not None)):
        source = find_source(
            options.host,
            options.head,
            options.exported,
            options.device,
            options.tower,
            other_tower=options.other_tower,
            stream=options.stream,
        )
        check_source(options, source)
        wanted = _wanted(options, metric=source.says.metric)
        make_view = _view_maker(options)
        _check_outputs(options, inputs, wanted)
        source.open()
    with _rgbd_folder(options, source) as rgbd:
        run = Run(
            source,
            wanted,
            make_view,
            folder=options.output,
            batch_size=options.batch_size,
            max_pixels=options.max_pixels,
            frames=options.frames,
            rgbd=rgbd,
        )
        return run(inputs, console)


def _checked_inputs(options: PredictOptions) -> Inputs:
    """What there is to do, where nothing in it contradicts the options or itself."""
    from clipdepth_plugin.cli.predict_overwrite import check_names

    inputs = find_inputs(options.images)
    if options.stream:
        inputs = inputs._replace(images=frames_in_order(inputs.images))
    check_inputs(options, inputs)
    for paths in inputs:
        check_names(paths, confidence=options.confidence, undistort=options.undistort)
    if options.rgbd is not None:
        from clipdepth_plugin.cli.predict_rgbd import check_sequences

        check_sequences(inputs)
    return inputs


def _check_outputs(options: PredictOptions, inputs: Inputs, wanted: Wanted) -> None:
    """Refuses to replace files of others without --overwrite."""
    from clipdepth_plugin.cli.predict_overwrite import check_replaced
    from clipdepth_plugin.cli.predict_videos import check_videos_replaced

    if not options.overwrite:
        check_replaced(inputs.images, options.output, wanted)
        check_videos_replaced(inputs.videos, options.output, frames=options.frames)


def _wanted(options: PredictOptions, *, metric: bool) -> Wanted:
    from clipdepth_plugin.cli.predict_files import Wanted

    names = ("npy", "confidence", "ply", "glb", "undistort")
    return Wanted(metric=metric, **{name: getattr(options, name) for name in names})


def _view_maker(options: PredictOptions) -> ViewMaker:
    return ViewMaker(
        options.intrinsics,
        options.focal_px,
        undistort=options.undistort,
        needed_by=next(iter(options.given("ply", "glb")), None),
        straight_for=next(iter(options.given("ply", "glb", "rgbd")), None),
    )


def _rgbd_folder(
    options: PredictOptions, source: MapSource
) -> AbstractContextManager[RgbdFolder | None]:
    if options.rgbd is None:
        return nullcontext()
    from clipdepth_plugin.cli.predict_rgbd import rgbd_folder, rgbd_settings

    settings = rgbd_settings(
        options.focal_px, options.intrinsics, undistort=options.undistort, stream=options.stream
    )
    return rgbd_folder(options.rgbd, source.card(), settings)
