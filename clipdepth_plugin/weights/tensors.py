"""Tensors of head files: held against the head that a config describes, before it takes memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipdepth_plugin.errors import HeadFileError, shortened
from clipdepth_plugin.files.documents import MIB, parse_json

M = TypeVar("M", bound=nn.Module)

_HEADER_BYTES = 16 * MIB
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

Shapes = Mapping[str, tuple[int, ...]]


def build_checked(build: Callable[[], M], shapes: Shapes, source: Path | str) -> M:
    """Builds a head once its shapes are known to be those of its weights.

    It is built on the meta device first, which takes no memory.

    Raises:
        HeadFileError: Weights are missing, unexpected or of another shape.
    """
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    # Sizes whose product no integer holds.
    except (RuntimeError, OverflowError, TypeError) as error:
        raise HeadFileError(
            f"{source}: the config's sizes make no head ({shortened(error, 300)})"
        ) from error
    check_shapes({name: tuple(x.shape) for name, x in expected.items()}, shapes, source)
    return build()


def check_shapes(expected: Shapes, found: Shapes, source: Path | str) -> None:
    """A HeadFileError that names what is missing, unexpected or of another shape."""
    both = expected.keys() & found.keys()
    _refuse_any(
        {
            "missing": [*(expected.keys() - found.keys())],
            "unexpected": [*(found.keys() - expected.keys())],
            "of another shape": [
                f"{name} {found[name]} (expected {expected[name]})"
                for name in both
                if found[name] != expected[name]
            ],
        },
        source,
    )


def read_shapes(path: Path) -> Shapes:
    """Name -> shape, from a .safetensors file's header; no tensor is read."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("no such file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(path.stat().st_size, _HEADER_BYTES):
                raise ValueError(f"its header says that it has {length} bytes")
            header = file.read(length)
        # Not safetensors' own reading alone: it takes a name that is given twice.
        tree = parse_json(header, f"{path}: header", HeadFileError, limit=_HEADER_BYTES)
        return {
            name: tuple(map(int, entry["shape"]))
            for name, entry in tree.items()
            if name != "__metadata__"
        }
    # A header of another form: no object, no shape, a side that is infinite.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file; a HeadFileError if it is missing or none."""
    read_shapes(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> HeadFileError:
    return HeadFileError(
        f"{path}: missing, truncated or no safetensors file ({shortened(error, 300)}); get or save "
        "it again"
    )


def load_weights(head: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Loads a state dict into a head, every tensor checked before any is copied."""
    own = head.state_dict()
    check_plain(state, source)
    check_shapes(
        {name: tuple(x.shape) for name, x in own.items()},
        {name: tuple(x.shape) for name, x in state.items()},
        source,
    )
    floats = [name for name in own if own[name].is_floating_point()]
    whole = [name for name in own if not own[name].is_floating_point()]
    _refuse_any(
        {
            "not of floats": [
                f"{n} {state[n].dtype}" for n in floats if state[n].dtype not in _FLOATS
            ],
            "not of whole numbers": [
                f"{n} {state[n].dtype}" for n in whole if state[n].dtype not in _WHOLE
            ],
        },
        source,
    )
    # In the head's own dtype: a float64 may be more than a float32 holds.
    infinite = [n for n in floats if not bool(state[n].to(own[n].dtype).isfinite().all())]
    negative = [n for n in floats if n.endswith("running_var") and bool((state[n] < 0).any())]
    _refuse_any({"not finite (NaN or infinite)": infinite, "negative variances": negative}, source)
    head.load_state_dict(dict(state))


def check_plain(state: Mapping[str, Tensor], source: Path | str) -> None:
    """Refuses tensors that are not there as they seem.

    Raises:
        HeadFileError: Sparse or quantised ones, ones without content, and views that repeat a few
            numbers (a pickle can hold them) into a size that no memory has.
    """
    odd = [
        name
        for name, x in state.items()
        if x.layout != torch.strided
        or x.is_quantized
        or x.is_meta
        or x.untyped_storage().nbytes() < x.numel() * x.element_size()
    ]
    _refuse_any({"no plain tensors": odd}, source)


def _refuse_any(problems: Mapping[str, list[str]], source: Path | str) -> None:
    for what, names in problems.items():
        if names:
            shown = ", ".join(shortened(name, 300) for name in itertools.islice(sorted(names), 5))
            more = f" and {len(names) - 5} more" if names[5:] else ""
            raise HeadFileError(f"{source}: {what}: {shown}{more}")
