"""What ``clipdepth predict`` must not replace: files of others, and its own of another picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clipdepth_plugin.cli.predict_files import KINDS, Wanted
from clipdepth_plugin.errors import DepthFileError, ImageError, printable
from clipdepth_plugin.files.pictures import CONFIDENCE_SUFFIX, DEPTH_SUFFIX

_NAME_BYTES = 255
"""The longest name of a file on the file systems in use."""


def check_names(
    images: Sequence[Path], *, confidence: bool = False, undistort: bool = False
) -> None:
    """Refuses pictures whose output files would overwrite each other, or can't be named.

    Names are compared without regard to case, as some file systems do.

    Raises:
        ImageError: Two pictures have the same stem, or one has too long a name.
    """
    kinds = [kind.suffix for kind in KINDS if kind.wanted(Wanted(undistort=undistort))]
    longest = max(map(len, (CONFIDENCE_SUFFIX, *kinds)))
    seen: dict[str, Path] = {}
    for image in images:
        if len(os.fsencode(image.stem)) + longest > _NAME_BYTES:
            raise ImageError(
                f"{printable(image)}: its maps' names would be longer than {_NAME_BYTES} bytes; "
                "rename it"
            )
        for stem in (image.stem, f"{image.stem}.confidence")[: 1 + confidence]:
            other = seen.setdefault(stem.casefold(), image)
            if other is not image:
                raise ImageError(
                    f"{other} and {image} would both be written to {stem}.npy or {stem}"
                    f"{DEPTH_SUFFIX}; rename one, or write them to different folders"
                )


def check_replaced(
    images: Sequence[Path], folder: Path, wanted: Wanted | None = None, **kinds: bool
) -> None:
    """Refuses to replace files that ``clipdepth predict`` did not write.

    The true depth in an RGB-D folder has the same names as predictions. A file of ours has a note
    in it, so that it is known whatever is beside it. ``kinds`` are fields of ``Wanted``.

    Raises:
        DepthFileError: Another file is where an output would go.
    """
    wanted = wanted or Wanted(**kinds)
    outputs = (
        (folder / f"{image.stem}{kind.suffix}", kind)
        for image in images
        for kind in KINDS
        if kind.wanted(wanted)
    )
    refuse_foreign(
        [path for path, kind in outputs if os.path.lexists(path) and not kind.is_ours(path)]
    )


def refuse_foreign(foreign: Sequence[Path]) -> None:
    """Refuses to write where files of others are.

    Raises:
        DepthFileError: There is one.
    """
    if foreign:
        others = f" (and {len(foreign) - 1} more such files)" if len(foreign) > 1 else ""
        raise DepthFileError(
            f"{foreign[0]}{others}: not written, as it is, by predict, and would be replaced; it "
            "may be true depth. Give another folder to -o, or replace it with --overwrite"
        )
