"""The options of ``clipdepth predict``, and which of them contradict each other."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clipdepth_plugin.cli.options import (
    HEAD_HELP,
    HOST_HELP,
    BatchOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
)
from clipdepth_plugin.cli.predict_cameras import EXIF
from clipdepth_plugin.cli.predict_inputs import Inputs
from clipdepth_plugin.cli.predict_sources import MapSource
from clipdepth_plugin.errors import ClipDepthError, HeadMismatchError, HostError
from clipdepth_plugin.files.opening import MAX_PIXELS


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
    rgbd: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write pictures and frames with their depth and cameras as an RGB-D folder, "
            "which clipdepth train reads.",
        ),
    ] = None
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

    def given(self, *names: str) -> list[str]:
        """Those of these fields that are not at their defaults, as options are spelt."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != defaults[name]
        ]


def check_options(options: PredictOptions) -> None:
    """Refuses options that contradict each other.

    Raises:
        HostError: Which, and what to do.
    """
    of_torch = options.given("host", "head", "tower", "other_tower")
    exported, stream = options.exported is not None, options.stream
    _refuse(
        stream and exported,
        "--stream: an exported graph gives no tokens, by which frames are matched; give --host "
        "and --head in place of --exported",
    )
    _refuse(
        stream and options.batch_size != 1,
        "--batch-size: --stream takes frames one by one; leave it out",
    )
    for name in ("--host", "--head"):
        _refuse(
            name not in of_torch and not exported,
            f"{name} is missing: give --host and --head, or --exported FOLDER",
        )
    _refuse(
        exported and of_torch,
        f"{', '.join(of_torch)}: does nothing with --exported, whose folder has host and head in "
        "it; leave one of the two out",
    )
    _refuse(
        len(options.given("focal_px", "intrinsics")) > 1,
        "--focal-px and --intrinsics both say the camera; leave one of them out",
    )
    _refuse(
        options.undistort and options.intrinsics in (None, EXIF),
        "--undistort: needs --intrinsics FILE, which says the lens's distortion",
    )
    _refuse(
        options.rgbd and os.path.realpath(options.rgbd) == os.path.realpath(options.output),
        f"--rgbd: {options.rgbd} is the folder of -o; give a folder of its own",
    )


def check_inputs(options: PredictOptions, inputs: Inputs) -> None:
    """Refuses options that do nothing for these inputs, or too much.

    Raises:
        HostError: Which, and what to do.
    """
    of_frames = options.given("npy", "confidence", "ply", "glb")
    _refuse(
        inputs.videos and of_frames and not options.frames,
        f"{', '.join(of_frames)}: of a video these are files of each frame, thousands of them; "
        "add --frames, or leave them out",
    )
    _refuse(
        options.frames and not inputs.videos,
        "--frames: there is no video among the inputs; leave it out",
    )
    _refuse(
        inputs.videos and not inputs.images and options.intrinsics == EXIF,
        "--intrinsics exif: videos have none; give a file, or --focal-px",
    )


def check_source(options: PredictOptions, source: MapSource) -> None:
    """Refuses options that the head has nothing for.

    Raises:
        HeadMismatchError: Which, and what to do.
    """
    name, says = source.name, source.says
    clouds = options.given("ply", "glb")
    _refuse(
        options.confidence and not says.confidence,
        f"--confidence: {name} predicts none (head.options.confidence: true in its training "
        "config would); leave the option out",
        HeadMismatchError,
    )
    _refuse(
        clouds and not says.metric,
        f"{', '.join(clouds)}: {name} gives relative depth (config.metric is False), which has no "
        "shape in metres; leave the option out",
        HeadMismatchError,
    )
    if clouds or options.rgbd is not None or options.undistort:
        return  # a camera is of use to them, whatever the head
    for given in options.given("focal_px", "intrinsics"):
        _refuse(
            not says.metric,
            f"{given}: {name} gives relative depth (config.metric is False), which no camera turns "
            "into metres; leave the option out",
            HeadMismatchError,
        )
        _refuse(
            says.canonical_focal is None,
            f"{given}: {name} was trained without a canonical camera, so its metres do not depend "
            "on the focal length; leave the option out",
            HeadMismatchError,
        )


def _refuse(is_wrong: object, message: str, kind: type[ClipDepthError] = HostError) -> None:
    if is_wrong:
        raise kind(message)
