"""Safetensors files with a JSON text and the sha256 of both in their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.documents import MIB, parse_json

_LIMIT = 100 * MIB  # safetensors' own bound


class DamagedFileError(TrainingError):
    """A file's content is not what was written."""


@dataclass(frozen=True)
class SealedFile:
    """An open file; ``tensors`` are mapped: they are read from the disk when they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    text: str
    sha256: str

    def check(self) -> None:
        """Reads all of the file.

        Raises:
            DamagedFileError: It does not have the sha256 that was written with it.
        """
        if _sha256(self.tensors, self.text) != self.sha256:
            raise DamagedFileError(
                f"{self.path}: damaged (its content does not have the sha256 that was written "
                "with it)"
            )

    def json(self) -> Any:
        """The text's value; a DamagedFileError where it is no JSON."""
        where = f"{self.path}: damaged: its text"
        return parse_json(self.text, where, DamagedFileError, limit=_LIMIT)


def seal(tensors: Mapping[str, Tensor], value: Any) -> bytes:
    """The content of a file with these tensors and this JSON value."""
    text = json.dumps(value, allow_nan=False)
    metadata = {"state": text, "sha256": _sha256(tensors, text)}
    return safetensors.torch.save(dict(tensors), metadata)


def open_sealed(path: Path) -> SealedFile:
    """Opens a file, unchecked.

    Raises:
        DamagedFileError: Truncated, or none that ``seal`` made.
        TrainingError: It can't be read.
    """
    try:
        path.open("rb").close()  # its errors are the system's own
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return SealedFile(path, tensors, metadata["state"], metadata["sha256"])
    except KeyError as error:
        raise DamagedFileError(f"{path}: damaged (no {error} in its metadata)") from error
    except (SafetensorError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise DamagedFileError(f"{path}: damaged ({error})") from error
    except OSError as error:
        raise TrainingError(f"{path}: can't be read ({error.strerror or error})") from error


def _sha256(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
