"""AugmentConfig: random augmentation of training samples; checked on construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from clipdepth_plugin.settings import Factor, Idle, Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

PARTS = ("rotation_degrees", "zoom", "gamma", "brightness", "colour")
"""The fields whose parts are drawn with ``probability``."""


def _is_never_drawn(part: str) -> Callable[[Any], bool]:
    return lambda config: bool(config.probability == 0 and config.asks(part))


class AugmentConfig(Settings):
    """Random augmentation of training samples; a range of (1, 1) or 0 degrees disables a part.

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

    probability: Probability = 0.5
    """Probability of each of rotation, zoom, gamma, brightness and colour."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("zoom", "gamma", "brightness", "colour"):
            low, high = getattr(self, name)
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
        return getattr(self, part) not in (0.0, (1.0, 1.0))
