"""The kernel benchmark on tiny heads: what it times, and that it refuses a wrong form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipdepth_plugin import HeadConfig
from clipdepth_plugin.fused.head import FusedHead
from tests.benchmarks.kernel_cases import OPS, Bound, head_case, random_head
from tests.benchmarks.kernels import Plan, make_cases, make_forms, measure, run

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"width": 24, "film_hidden": 8}
HEADS = {
    "spaceclip": HeadConfig(**TINY, channels=(16, 12, 8, 8)),
    "fast": HeadConfig(**TINY, preset="fast", channels=(16, 12, 8)),
    "guided": HeadConfig(**TINY, preset="guided", channels=(16, 12, 8), stem_channels=8),
}


def fake_timer(call: Callable[[], object]) -> float:
    """Plain heads take 8 ms, all else 2; everything runs."""
    call()
    plain = isinstance(call, Bound) and not isinstance(call.function, FusedHead)
    return 0.008 if plain else 0.002


PLAN = Plan(HEADS, grid=(3, 5), rounds=8, compiled=False, timer=fake_timer)


def test_every_op_and_head_is_timed_and_written(tmp_path: Path) -> None:
    assert run(PLAN, CPU, tmp_path, ("make", "bench-kernels")) == 0
    report = json.loads((tmp_path / "kernels_cpu.json").read_text(encoding="utf-8"))
    names = {case["name"] for case in report["cases"]}
    assert names == {f"{head}, batch 1" for head in HEADS} | {*OPS} - {"group_norm_act"}
    markdown = (tmp_path / "kernels_cpu.md").read_text(encoding="utf-8")
    assert "| fast, batch 1 | float32 | fused | 2 [2, 2] | 4 [4, 4] |" in markdown
    assert "- not measured, float32 fused: the Triton kernel needs CUDA" in markdown
    assert "| join_conv | float32 | plain |" in markdown


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_a_form_that_gives_other_numbers_is_not_timed(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FusedHead.forward

    def forward(self: FusedHead, *args: Any) -> Tensor:
        return right(self, *args) * wrong

    monkeypatch.setattr(FusedHead, "forward", forward)
    case = head_case("fast", random_head(HEADS["fast"], (2, 2)), (2, 2), 1)
    with torch.no_grad():
        forms = {(f.name, f.dtype): f for f in make_forms(case, CPU, compiled=False)}
    fused = forms["fused", torch.float32]
    assert fused.failed
    assert fused.call is None
    assert "gives other numbers" in fused.reason


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_every_form_runs() -> None:
    cuda = torch.device("cuda")
    plan = Plan(HEADS, grid=(3, 5), batches=(1, 2), rounds=8)
    rows = [form for case in make_cases(plan, cuda) for form in measure(case, plan, cuda)["forms"]]
    assert [form for form in rows if form["reason"]] == []
