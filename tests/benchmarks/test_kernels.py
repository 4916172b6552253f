"""Fused ops at their places in a head, and whole heads in bfloat16, beside the plain modules.

On a GPU if there is one; batch 1, a ViT-B/16's tokens at 224. Heads in float32 are in
`test_heads.py`. Ratios from one interleaved run, torch.compile too: `clipdepth bench kernels`.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from clipdepth_plugin import ops
from clipdepth_plugin.latency.kernel_cases import Case
from clipdepth_plugin.latency.kernel_forms import dtype_name, obstacle
from clipdepth_plugin.latency.kernel_measure import HEADS, make_cases, plan_for
from clipdepth_plugin.latency.kernel_schema import Form

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    *((name, dtype) for name in ops.__all__ if name != "use_triton"
      for dtype in (torch.float32, torch.bfloat16)),
    *((name, torch.bfloat16) for name in HEADS),
]  # fmt: skip
NO_GRAPH = obstacle("graph", torch.float32, DEVICE)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.name: case for case in make_cases(plan_for(DEVICE), DEVICE) if case.batch == 1}


def name_of(value: object) -> str:
    return dtype_name(value) if isinstance(value, torch.dtype) else str(value)


@pytest.mark.parametrize("form", ["plain", "fused"])
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=name_of)
def test_kernel(
    benchmark: BenchmarkFixture,
    cases: dict[str, Case],
    name: str,
    dtype: torch.dtype,
    form: Form,
) -> None:
    time_form(benchmark, cases[name], dtype, form)


# One skip on a CPU, not one for each case.
@pytest.mark.parametrize(("name", "dtype"), CASES[: 1 if NO_GRAPH else None], ids=name_of)
def test_kernel_in_a_graph(
    benchmark: BenchmarkFixture, cases: dict[str, Case], name: str, dtype: torch.dtype
) -> None:
    time_form(benchmark, cases[name], dtype, "graph")


def time_form(benchmark: BenchmarkFixture, case: Case, dtype: torch.dtype, form: Form) -> None:
    if (why_not := obstacle(form, dtype, DEVICE)) is not None:
        pytest.skip(why_not)

    def run() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        call = getattr(case, form)(dtype)
        benchmark.extra_info["place"] = case.place
        benchmark(run)
