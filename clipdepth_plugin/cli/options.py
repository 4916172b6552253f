"""Options that several commands share: types of fields for their dataclasses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdepth_plugin.errors import HostError

MOST = 2**20
"""Of anything that is counted; more is a slip of the keyboard."""
LARGEST_SIDE = 2**14
"""Pixels on the side of a picture that a tower is shown."""
LARGEST_SEED = 2**32 - 1

HOST_HELP = (
    "The host: demo, open_clip:MODEL/TAG (open_clip:ViT-B-16/openai), hf:ORG/NAME, timm:NAME, "
    "config:NAME (a built-in config with random weights), or a folder that a library saved."
)
HEAD_HELP = "The depth head: a folder, a hub id, or demo, which --host demo has by itself."
_DATA_HELP = (
    "FORMAT:ROOT or FORMAT:ROOT:SPLIT (rgbd:data/libero:test), or a YAML or JSON file with the "
    "fields of a data set's config."
)

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help=HOST_HELP)]
HostOption = Annotated[str, typer.Option("--host", metavar="HOST", help=HOST_HELP)]
HeadOption = Annotated[
    str, typer.Option("--head", metavar="HEAD", help=HEAD_HELP, show_default=False)
]
"""Empty where it is left out, as ``head_for`` takes it."""
DataOption = Annotated[str, typer.Option("--data", metavar="DATA", help=_DATA_HELP)]
OutputOption = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="DIR", help="Folder to write to, made if missing."),
]
BatchOption = Annotated[int, typer.Option(min=1, max=MOST, help="Pictures in one tower pass.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")]
TowerOption = Annotated[
    str | None, typer.Option(metavar="PATH", help="Which tower, where inspect lists several.")
]
OtherTowerOption = Annotated[
    bool,
    typer.Option(
        "--other-tower", help="Take a tower with other weights than the head was trained on."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, and nothing else, on stdout.")]
RandomWeightsOption = Annotated[
    bool,
    typer.Option("--random-weights", help="Build the host from its config, without weights."),
]
SourceDtypeOption = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16; not given: the source's own.")
]
RayOption = Annotated[
    bool, typer.Option("--ray", help="Run on Ray: on its cluster, else on this machine.")
]
ActorsOption = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Ray actors; each opens the source once.")
]


def head_for(host: str | None, head: str) -> str:
    """The head of a host: what is given, or for the demo host its own.

    Raises:
        HostError: None is given.
    """
    if not head and host != "demo":
        raise HostError(f"--head is missing: which head is it for --host {host}?")
    return head or "demo"
