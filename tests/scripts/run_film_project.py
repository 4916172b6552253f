"""Runs the film_project kernel in Triton's interpreter; prints relative errors as JSON.

Run by tests/test_kernels.py with TRITON_INTERPRET=1: Triton decides at import.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from clipdepth_plugin.kernels.film_project import film_project, film_project_reference

# views, grid, width, channels, prefix
CASES = (
    (0, (3, 3), 64, 32, 1),
    (1, (13, 17), 768, 64, 1),
    (3, (5, 7), 384, 40, 5),
    (1, (4, 4), 1024, 256, 0),
    (2, (3, 5), 1152, 33, 0),
    (1, (1, 1), 20, 17, 1),
)


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    errors = {}
    for views, (h, w), width, channels, prefix in CASES:
        x = random(views, prefix + h * w, width)
        x[:, :prefix] = torch.nan  # must not be read into any output
        rest = (
            random(views, width),
            random(views, width),
            random(channels, width) / width**0.5,
            random(channels),
        )
        exact = film_project_reference(x.double(), *(t.double() for t in rest), prefix=prefix)
        for dtype in (torch.float32, torch.bfloat16):
            out = film_project(
                x.to(dtype), *(t.to(dtype) for t in rest), prefix=prefix, triton=True
            )
            assert out.shape == (views, h * w, channels)
            assert out.dtype == dtype
            error = (out.double() - exact).norm() / exact.norm().clamp_min(1e-9)
            errors[f"{views}x{h}x{w}x{width}x{channels}+{prefix} {dtype}"] = error.item()
    print(json.dumps(errors))  # noqa: T201


if __name__ == "__main__":
    main()
