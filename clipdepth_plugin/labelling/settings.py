"""LabelSettings: what the labels depend on beside pictures and source; kept in meta.json."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from clipdepth_plugin.settings import GivenCamera, GivenFocal, GivenMetres, Settings

MOST_METRES = 1000.0
"""Farthest depth that 16 bits hold with some sense: 15 mm apart."""


class SourceSettings(Settings):
    """What a source is told of all pictures."""

    focal_px: GivenFocal | None = None
    """Focal length in pixels of every picture, its centre being the picture's."""

    intrinsics: GivenCamera | None = None
    """(fx, fy, cx, cy) of every picture."""

    intrinsics_file: str | None = None
    """JSON: name -> [fx, fy, cx, cy] or null."""

    dtype: str | None = None
    """The source's: ``float32``, ``float16`` or ``bfloat16``. None: its own."""

    @model_validator(mode="after")
    def _one_camera(self) -> Self:
        given = [x for x in ("focal_px", "intrinsics", "intrinsics_file") if self.given(x)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        return self


class LabelSettings(SourceSettings):
    """What is labelled how. A folder holds labels of the same settings alone."""

    _beside: ClassVar[tuple[str, ...]] = ("the data set",)
    """What may say the cameras beside the user and EXIF."""

    flip: bool = True
    """Label the mirrored picture, too: pixels where the two differ by more than 10% are left out,
    how well they agree is kept. Takes twice the time."""

    max_depth: Annotated[GivenMetres, Field(le=MOST_METRES)] | None = None
    """Metres; what is farther, such as the sky, is left out. None: the source's own bound, or 100.
    A relative source has no metres and takes none."""

    intrinsics_file: str | None = None
    """JSON: name, ``<sequence>/<frame>`` as the labels are called -> [fx, fy, cx, cy] or null."""

    exif: bool = True
    """Read the focal length from a picture's EXIF where nothing else says it."""

    masks: str | None = None
    """A folder with a grey ``<sequence>/<frame>.png`` for each picture: pixels of 0 are left out.
    """

    @property
    def focal_from(self) -> str:
        """How focal lengths are known, in words; goes into meta.json."""
        if self.focal_px is not None or self.intrinsics is not None:
            return "the same for all pictures, given by the user"
        file = ["the user's file"] if self.intrinsics_file is not None else []
        where = [*file, *self._beside, *(["EXIF"] if self.exif else [])]
        return f"of each picture, from {', '.join(where)}, else unknown" if where else "unknown"
