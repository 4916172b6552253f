"""Meta: what is read of an RGB-D folder's meta.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from clipdepth_plugin.arguments import Intrinsics, Units
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.problems import checked, checked_type
from clipdepth_plugin.settings import GivenCamera, GivenMetres

_CAMERA: TypeAdapter[Intrinsics] = TypeAdapter(GivenCamera)


class _Sequence(BaseModel):
    model_config = ConfigDict(frozen=True)  # meta.json may say more
    source: str | None = None
    redistributable: str | None = None
    intrinsics: GivenCamera | None = None


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True)
    redistributable: str = ""


class _Labels(BaseModel):
    model_config = ConfigDict(frozen=True)
    source: str
    licence: str | None = None


class Meta(BaseModel):
    """What is read of meta.json; it may hold more."""

    model_config = ConfigDict(frozen=True)

    units: Units = "metres"
    labels: _Labels | None = None
    depth_scale: GivenMetres | None = None
    max_depth_m: GivenMetres | None = None
    intrinsics: dict[str, Any] = Field(default_factory=dict)
    sequences: dict[str, Any] = Field(default_factory=dict)  # "<split>/<sequence>" -> its entry
    sources: dict[str, _Source] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.units == "metres" and self.depth_scale is None:
            raise ValueError("depth_scale: is missing, the stored value of one metre")
        for field in ("depth_scale", "max_depth_m"):
            if self.units != "metres" and getattr(self, field) is not None:
                raise ValueError(f"{field}: is of metres, and units: {self.units} has none")
        return self

    @property
    def teacher(self) -> str | None:
        """Whose labels the depths are, with the licence; None: they are truth."""
        if self.labels is None:
            return None
        licence = f" (licence {self.labels.licence})" if self.labels.licence else ""
        return f"{self.labels.source}{licence}"

    def is_free(self, sequence: str, path: Path) -> bool:
        """Whether ``<split>/<sequence>``, or else its source, is so without conditions."""
        own = self._sequence(sequence, path)
        source = self.sources.get(own.source or "", _Source())
        return (own.redistributable or source.redistributable) == "yes"

    def camera(self, sequence: str, path: Path) -> Intrinsics | None:
        """The camera of ``<split>/<sequence>``; its own null says that it is not known.

        Raises:
            DataError: It is none; names the file, ``path``, and the key.
        """
        own = self._sequence(sequence, path)
        if "intrinsics" in own.model_fields_set:
            return own.intrinsics
        default, where = self.intrinsics.get("default"), f"{path}: intrinsics.default"
        return None if default is None else checked_type(_CAMERA, default, where, DataError)

    def _sequence(self, name: str, path: Path) -> _Sequence:
        where = f"{path}: sequences, {name}"
        return checked(_Sequence, self.sequences.get(name, {}), where, DataError)
