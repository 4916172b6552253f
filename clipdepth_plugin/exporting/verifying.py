"""How far an exported file is from PyTorch, and whether that is near enough.

Axes: B pictures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clipdepth_plugin.errors import ExportError
from clipdepth_plugin.exporting.graphs import Graph, Inputs, Run, cast
from clipdepth_plugin.runtime.card import Agreement

BOUNDS: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
"""Largest difference over the largest value of an output, by the dtype of the file."""
DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in BOUNDS}
"""By the names that ``--dtype`` takes."""


def example_inputs(
    graph: Graph, picture_3HW: Tensor, focal_px: float, *, count: int
) -> list[tuple[Tensor, ...]]:
    """Inputs to compare on: of random pixels, and of a picture with others of its colours.

    Args:
        graph: In float32.
        picture_3HW: The picture, as the tower takes it.
        focal_px: A focal length in pixels of the tower's input.
        count: Pictures in a batch.
    """
    noise = torch.Generator().manual_seed(0)
    random_B3HW = torch.randn(count, *picture_3HW.shape, generator=noise)
    turned = [picture_3HW.flip(-1) if index % 2 else picture_3HW for index in range(count)]
    focal_B = focal_px * torch.linspace(1.0, 1.5, count)
    return [graph.inputs_of(one, focal_B) for one in (random_B3HW, torch.stack(turned))]


def verify(
    run: Run, reference: Graph, inputs: Sequence[Inputs], *, dtype: str, file: str
) -> dict[str, Agreement]:
    """Compares a file with PyTorch in float32 on inputs rounded to the file's dtype.

    Returns:
        By output: the worst of all inputs.

    Raises:
        ExportError: An output is further away than ``BOUNDS`` allow, or of another shape.
    """
    found: dict[str, list[Agreement]] = {name: [] for name in reference.output_names}
    names = reference.input_names
    for one in inputs:
        rounded = cast(one, names, DTYPES[dtype])
        with torch.no_grad():
            expected = reference(*cast(rounded, names, torch.float32))
        try:
            outputs = run(rounded)
        except Exception as error:  # of onnxruntime, of a loaded program
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(f"{file}: can't be run on this machine: {first}") from error
        for name, x, got in zip(found, expected, outputs, strict=True):
            found[name].append(_compared(x, got, f"{file}: output {name}", dtype))
    return {
        name: Agreement(worst=max(x.worst for x in all_of), cosine=min(x.cosine for x in all_of))
        for name, all_of in found.items()
    }


def _compared(expected: Tensor, got: Tensor, what: str, dtype: str) -> Agreement:
    if expected.shape != got.shape:
        raise ExportError(f"{what} is {tuple(got.shape)}, PyTorch's {tuple(expected.shape)}")
    x, y = expected.double().flatten(), got.double().flatten()
    if not bool(x.isfinite().all()):
        raise ExportError(f"{what} is not finite in PyTorch: are the weights?")
    if not bool(y.isfinite().all()):
        raise ExportError(
            f"{what} is NaN or infinite where PyTorch's in float32 is finite: does the tower "
            f"overflow in {dtype}? Take another --dtype"
        )
    worst = float((x - y).abs().max() / x.abs().max().clamp_min(1e-30))
    norms = float(x.norm() * y.norm())
    cosine = min(float(x @ y) / norms, 1.0) if norms else 1.0
    if worst > BOUNDS[dtype]:
        raise ExportError(
            f"{what} differs from PyTorch's by {worst:.1e} of its largest value, more than the "
            f"{BOUNDS[dtype]:.0e} that {dtype} is allowed (cosine {cosine:.6f}): the file would be "
            "wrong, and none is written"
        )
    return Agreement(worst=worst, cosine=cosine)
