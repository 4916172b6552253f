"""``clipdepth predict``: pictures and videos in, depth maps out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from rich.console import Console

from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.options import (
    HEAD_HELP,
    HOST_HELP,
    BatchOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
    head_for,
)
from clipdepth_plugin.cli.predict_cameras import EXIF, ViewMaker
from clipdepth_plugin.cli.predict_inputs import Inputs, find_inputs
from clipdepth_plugin.cli.predict_sources import MapSource, find_source, frames_in_order
from clipdepth_plugin.errors import HeadMismatchError, HostError
from clipdepth_plugin.files.opening import MAX_PIXELS

if TYPE_CHECKING:
    from clipdepth_plugin.cli.predict_files import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """The options of the command."""

    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Pictures, folders of pictures, videos, and globs of either."
        ),
    ]
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help=HOST_HELP)] = None
    head: Annotated[str | None, typer.Option("--head", metavar="HEAD", help=HEAD_HELP)] = None
    exported: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="In place of --host and --head: a folder of clipdepth export, which runs in "
            "onnxruntime, without torch.",
        ),
    ] = None
    output: OutputOption
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write NAME.npy: float32 metres, not rounded.")
    ] = False
    batch_size: BatchOption = 1
    device: Annotated[
        str, typer.Option(help="Where to compute, e.g. cpu or cuda; with --exported tensorrt, too.")
    ] = "cpu"
    tower: TowerOption = None
    other_tower: OtherTowerOption = False
    focal_px: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1e6,
            help="Focal length in pixels of the pictures, for heads with a canonical camera, and "
            "for --ply and --glb.",
        ),
    ] = None
    intrinsics: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The pictures' cameras, in place of --focal-px: JSON, COLMAP's cameras.txt, ROS's "
            "CameraInfo (YAML); or exif, for what each picture's own EXIF says.",
        ),
    ] = None
    undistort: Annotated[
        bool,
        typer.Option(
            "--undistort",
            help="Make pictures of radial and fisheye lenses straight first, as --intrinsics says; "
            "every output is of the straight picture, which is NAME.undistorted.png.",
        ),
    ] = False
    ply: Annotated[
        bool, typer.Option("--ply", help="Also write NAME.ply: points, normals and colours.")
    ] = False
    glb: Annotated[
        bool,
        typer.Option("--glb", help="Also write NAME.glb: a mesh with the picture on it."),
    ] = False
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="Also write each frame of a video as a picture's files: NAME/000000.depth.png.",
        ),
    ] = False
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="Also write NAME.confidence.png: 8-bit, 255 is sure; as .npy, too."
        ),
    ] = False
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Hold depth steady over the frames of a video, or of a folder, whose pictures are "
            "frames of one camera in the order of the numbers in their names.",
        ),
    ] = False
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1, max=1 << 31, help="Pictures with more pixels are named, and not decoded."
        ),
    ] = MAX_PIXELS
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that predict did not write, too.")
    ] = False


def predict(options: PredictOptions, console: Console) -> int:
    """Write depth maps of pictures and videos.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture. Those of an earlier
    run are replaced; other files of these names (the truth of an RGB-D folder has them) only with
    --overwrite. A picture of one colour has no depth: its maps are 0, and it is named.

    For each video: NAME.colour.mp4, picture and depth side by side, with the video's frame times
    and sound; with --frames also the files of each frame. Ctrl-C ends it after the frame that is
    being done: what is written by then is whole.

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
    from clipdepth_plugin.cli.predict_files import check_names, check_replaced
    from clipdepth_plugin.cli.predict_run import Run
    from clipdepth_plugin.cli.predict_videos import check_videos_replaced

    Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the bound
    if options.host == "demo" and options.head is None and options.exported is None:
        options = dataclasses.replace(options, head=head_for(options.host, ""))
    _check_options(options)
    inputs = find_inputs(options.images)
    if options.stream:
        inputs = inputs._replace(images=frames_in_order(inputs.images))
    _check_videos(options, inputs)
    for paths in inputs:
        check_names(paths, confidence=options.confidence, undistort=options.undistort)
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
        _check_camera(source, options)
        wanted = _wanted(options, metric=source.says.metric)
        make_view = _view_maker(options)
        if not options.overwrite:
            check_replaced(inputs.images, options.output, wanted)
            check_videos_replaced(inputs.videos, options.output, frames=options.frames)
        source.open()
    run = Run(
        source,
        wanted,
        make_view,
        folder=options.output,
        batch_size=options.batch_size,
        max_pixels=options.max_pixels,
        frames=options.frames,
    )
    return run(inputs, console)


def _wanted(options: PredictOptions, *, metric: bool) -> Wanted:
    from clipdepth_plugin.cli.predict_files import Wanted

    names = ("npy", "confidence", "ply", "glb", "undistort")
    return Wanted(metric=metric, **{name: getattr(options, name) for name in names})


def _view_maker(options: PredictOptions) -> ViewMaker:
    return ViewMaker(
        options.intrinsics,
        options.focal_px,
        undistort=options.undistort,
        needed_by=_needing(options),
    )


def _check_options(options: PredictOptions) -> None:
    of_torch = {
        "--host": options.host is not None,
        "--head": options.head is not None,
        "--tower": options.tower is not None,
        "--other-tower": options.other_tower,
    }
    if options.stream and options.exported is not None:
        raise HostError(
            "--stream: an exported graph gives no tokens, by which frames are matched; give --host "
            "and --head in place of --exported"
        )
    if options.stream and options.batch_size != 1:
        raise HostError("--batch-size: --stream takes frames one by one; leave it out")
    if options.exported is None:
        for name in ("--host", "--head"):
            if not of_torch[name]:
                raise HostError(f"{name} is missing: give --host and --head, or --exported FOLDER")
    elif given := [name for name, is_given in of_torch.items() if is_given]:
        raise HostError(
            f"{', '.join(given)}: does nothing with --exported, whose folder has host and head in "
            "it; leave one of the two out"
        )
    if options.focal_px is not None and options.intrinsics is not None:
        raise HostError("--focal-px and --intrinsics both say the camera; leave one of them out")
    if options.undistort and options.intrinsics in (None, EXIF):
        raise HostError("--undistort: needs --intrinsics FILE, which says the lens's distortion")


def _check_videos(options: PredictOptions, inputs: Inputs) -> None:
    of_frames = {
        "--npy": options.npy,
        "--confidence": options.confidence,
        "--ply": options.ply,
        "--glb": options.glb,
    }
    given = [name for name, is_given in of_frames.items() if is_given]
    if inputs.videos and given and not options.frames:
        raise HostError(
            f"{', '.join(given)}: of a video these are files of each frame, thousands of them; add "
            "--frames, or leave them out"
        )
    if options.frames and not inputs.videos:
        raise HostError("--frames: there is no video among the inputs; leave it out")
    if inputs.videos and not inputs.images and options.intrinsics == EXIF:
        raise HostError("--intrinsics exif: videos have none; give a file, or --focal-px")


def _needing(options: PredictOptions) -> str | None:
    """The option that can't do without the pictures' cameras."""
    wanted = {"--ply": options.ply, "--glb": options.glb}
    return next((name for name, is_given in wanted.items() if is_given), None)


def _check_camera(source: MapSource, options: PredictOptions) -> None:
    name, says, needing = source.name, source.says, _needing(options)
    if options.confidence and not says.confidence:
        raise HeadMismatchError(
            f"--confidence: {name} predicts none (head.options.confidence: true in its "
            "training config would); leave the option out"
        )
    if needing is not None and not says.metric:
        raise HeadMismatchError(
            f"{needing}: {name} gives relative depth (config.metric is False), which has no shape "
            "in metres; leave the option out"
        )
    given = "--focal-px" if options.focal_px is not None else "--intrinsics"
    if options.focal_px is None and (options.intrinsics is None or options.undistort):
        return
    if not says.metric:
        raise HeadMismatchError(
            f"{given}: {name} gives relative depth (config.metric is False), which no "
            "camera turns into metres; leave the option out"
        )
    if says.canonical_focal is None and needing is None:
        raise HeadMismatchError(
            f"{given}: {name} was trained without a canonical camera, so its metres "
            "do not depend on the focal length; leave the option out"
        )
