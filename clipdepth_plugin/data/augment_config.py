"""AugmentConfig: random augmentation of training samples; checked on construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from clipdepth_plugin.settings import Factor, Idle, Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
_Sigma = Annotated[float, Field(ge=0.0, le=20.0)]
_Saturation = Annotated[float, Field(ge=0.0, le=100.0)]
_Deviation = Annotated[float, Field(ge=0.0, le=1.0)]
_Quality = Annotated[float, Field(ge=1.0, le=100.0)]

_ONCE = (1.0, 1.0)
_FIRST = {
    "rotation_degrees": 0.0,
    "zoom": _ONCE,
    "gamma": _ONCE,
    "brightness": _ONCE,
    "colour": _ONCE,
}
_LATER = {
    "blur": (0.0, 0.0),
    "contrast": _ONCE,
    "saturation": _ONCE,
    "noise": (0.0, 0.0),
    "jpeg": None,
}
PARTS = {**_FIRST, **_LATER}
"""The fields whose parts are drawn with ``probability``, and their values that switch them off."""


def _is_never_drawn(part: str) -> Callable[[Any], bool]:
    return lambda config: bool(config.probability == 0 and config.asks(part))


class AugmentConfig(Settings):
    """Random augmentation of training samples; factors of (1, 1), else 0 or null disable a part.

    The defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657).
    """

    IDLE: ClassVar[tuple[Idle, ...]] = (
        *(Idle(part, _is_never_drawn(part), "probability: 0") for part in PARTS),
        Idle(
            "probability",
            lambda it: it.probability > 0 and not any(map(it.asks, PARTS)),
            "every part that it is for switched off",
        ),
    )

    flip: Probability = 0.5
    """Probability of mirroring the view left to right."""

    rotation_degrees: float = Field(default=1.0, ge=0.0, le=45.0)
    """Rotations are drawn from minus to plus this."""

    zoom: tuple[Factor, Factor] = (1.0, 1.0)
    """Range of the factor by which a window of the view is magnified to the whole, as a longer
    lens would see it; for heads with ``canonical_focal``, which take the lens into account."""

    gamma: tuple[Factor, Factor] = (0.9, 1.1)
    """Range of the exponent of RGB in 0..1."""

    brightness: tuple[Factor, Factor] = (0.9, 1.1)
    """Range of the factor on RGB."""

    colour: tuple[Factor, Factor] = (0.9, 1.1)
    """Range of the factors on red, green and blue, drawn one by one."""

    blur: tuple[_Sigma, _Sigma] = (0.0, 0.0)
    """Range of the standard deviation, in pixels of the tower's input, of a Gaussian blur."""

    contrast: tuple[Factor, Factor] = (1.0, 1.0)
    """Range of the factor on RGB's difference from the picture's mean grey."""

    saturation: tuple[_Saturation, _Saturation] = (1.0, 1.0)
    """Range of the factor on RGB's difference from each pixel's grey; 0 makes it grey."""

    noise: tuple[_Deviation, _Deviation] = (0.0, 0.0)
    """Range of the standard deviation of Gaussian noise on RGB in 0..1."""

    jpeg: tuple[_Quality, _Quality] | None = None
    """Range of the quality of a JPEG that the view is stored in and read from; null for none."""

    probability: Probability = 0.5
    """Probability of each of the parts but the flip."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in PARTS:
            value = getattr(self, name)
            low, high = value if isinstance(value, tuple) else (0, 0)
            if not low <= high:
                raise ValueError(f"{name}: needs low <= high, got {low}, {high}")
        if self.zoom[0] < 1:
            raise ValueError(f"zoom: {self.zoom[0]} would show what the picture does not have")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of ``PARTS`` that change a picture."""
        return tuple(filter(self.asks, PARTS)) if self.probability > 0 else ()

    def asks(self, part: str) -> bool:
        """Whether a range is one that changes a picture."""
        return bool(getattr(self, part) != PARTS[part])

    def recipe(self) -> str:
        """All that a view made with it depends on.

        Parts that earlier releases did not have are in it only where they change a view, so that
        what is cached under it stays valid.
        """
        unused = {part for part in _LATER if part not in self.parts}
        return self.model_dump_json(exclude=unused)
