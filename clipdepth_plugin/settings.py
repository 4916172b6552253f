"""Settings: the base of every config that a user writes, and the numbers that its fields take.

A field that another one switches off must not be given: each class lists such fields in ``IDLE``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from clipdepth_plugin.arguments import (
    Intrinsics,
    parse_camera,
    parse_focal_length,
    parse_metres,
)

MOST = 2**31 - 1
LARGEST_SIDE = 2**14

Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Channels = Annotated[int, Field(ge=1, le=2**16)]
"""Of a layer."""
Level = Annotated[int, Field(ge=0, le=4096)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""Pixels of a tower's input or of a map."""
Factor = Annotated[float, Field(gt=0.0, le=100.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]

_EXPONENT = re.compile(r"\d+\.?\d*[eE][+-]?\d+")


def _of_config(value: Any) -> Any:
    """A value of a YAML file, whose reader takes 1e-3 (without a point) for text."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


GivenCamera = Annotated[Intrinsics, BeforeValidator(lambda x: parse_camera(x, "a camera"))]
"""(fx, fy, cx, cy), or a 3x3 matrix K, of a config or a set's file."""

GivenFocal = Annotated[float, BeforeValidator(lambda x: parse_focal_length(_of_config(x), "focal"))]
"""A focal length in pixels of a config or a file."""

GivenMetres = Annotated[float, BeforeValidator(lambda x: parse_metres(_of_config(x), "range"))]
"""A depth above 0 m, or the stored value of one metre, of a config or a file."""

GivenNearest = Annotated[
    float, BeforeValidator(lambda x: parse_metres(_of_config(x), "range", zero=True))
]
"""The same, or 0."""

STORED = {"stored": True}
"""Context of validation for a config that a program wrote, with every field at some value."""


class Idle(NamedTuple):
    """A field that does nothing in some configs.

    Attributes:
        field: Its name.
        when: Whether a config switches it off.
        by: What does, as the user wrote it: ``film: false``.
    """

    field: str
    when: Callable[[Any], bool]
    by: str


class Settings(BaseModel):
    """Frozen; unknown fields, NaN, infinities and truth values for numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    IDLE: ClassVar[tuple[Idle, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_values(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(str(name))
            kinds = set() if field is None else set(_kinds(field.annotation))
            values = value if isinstance(value, list | tuple) else [value]
            if kinds & {int, float} and bool not in kinds:
                for one in values:
                    if isinstance(one, bool):
                        raise ValueError(f"{name}: expected a number, got {str(one).lower()}")
        return data

    def given(self, field: str) -> bool:
        """Whether a field (``logging.pictures``) has another value than where it is left out."""
        first, _, inside = field.partition(".")
        if inside:
            return bool(getattr(self, first).given(inside))
        default: Any = type(self).model_fields[field].get_default(call_default_factory=True)
        return bool(getattr(self, field) != default)

    @model_validator(mode="after")
    def _refuse_idle(self, info: ValidationInfo) -> Any:
        if info.context != STORED:
            self.refuse_idle()
        return self

    def refuse_idle(self, prefix: str = "") -> None:
        """Refuses a field that another one switches off; ``prefix`` stands before its name.

        Raises:
            ValueError: There is one.
        """
        for field, when, by in self.IDLE:
            if self.given(field) and when(self):
                raise ValueError(
                    f"{prefix}{field}: does nothing with {by}; leave one of the two out"
                )


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in ``tuple[Annotated[int, ...], ...] | None``."""
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for one in inside:
        yield from _kinds(one)
