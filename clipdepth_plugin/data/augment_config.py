"""AugmentConfig: random augmentation of training samples; checked on construction."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class AugmentConfig(BaseModel):
    """Random augmentation of training samples; a range of (1, 1) or 0 degrees disables a part.

    The defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    flip: Probability = 0.5
    """Probability of mirroring the view left to right."""

    rotation_degrees: float = Field(default=1.0, ge=0.0, le=45.0)
    """Rotations are drawn from minus to plus this."""

    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Range of the factor by which a window of the view is magnified to the whole, as a longer
    lens would see it; for heads with ``canonical_focal``, which take the lens into account."""

    gamma: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    """Range of the exponent of RGB in 0..1."""

    brightness: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    """Range of the factor on RGB."""

    colour: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    """Range of the factors on red, green and blue, drawn one by one."""

    probability: Probability = 0.5
    """Probability of each of rotation, zoom, gamma, brightness and colour."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("zoom", "gamma", "brightness", "colour"):
            low, high = getattr(self, name)
            if not low <= high < math.inf:
                raise ValueError(f"{name}: needs low <= high, got {low}, {high}")
        if self.zoom[0] < 1:
            raise ValueError(f"zoom: {self.zoom[0]} would show what the picture does not have")
        return self
