"""``clipdepth bench kernels``: what it measures, refuses, writes, judges; tiny heads, no clock."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from clipdepth_plugin import HeadConfig, ops
from clipdepth_plugin.cli import kernel_bench
from clipdepth_plugin.cli.app import app
from clipdepth_plugin.cli.kernel_bench import run_kernel_bench
from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.errors import BenchError, KernelError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.graphs import GraphCache, Record, Recording
from clipdepth_plugin.fused.head import FusedHead
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency import kernel_forms
from clipdepth_plugin.latency.kernel_cases import Bound, head_case, random_features, random_head
from clipdepth_plugin.latency.kernel_forms import Made, Stopwatch, make_forms, obstacle
from clipdepth_plugin.latency.kernel_measure import (
    KernelPlan,
    count_cases,
    make_cases,
    measure_kernels,
    plan_for,
)
from clipdepth_plugin.latency.kernel_report import note_lines, to_markdown, verdict_lines
from clipdepth_plugin.latency.kernel_schema import (
    KernelReport,
    load_kernel_report,
)
from clipdepth_plugin.latency.schema import Range
from tests.tiny.kernel_reports import a_gpu_report, no_figure

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"width": 24, "film_hidden": 8}
HEADS = {
    "spaceclip": HeadConfig(**TINY, channels=(16, 12, 8, 8)),
    "fast": HeadConfig(**TINY, preset="fast", channels=(16, 12, 8)),
    "guided": HeadConfig(**TINY, preset="guided", channels=(16, 12, 8), stem_channels=8),
}


class FakeTimer:
    """Plain heads take 8 ms, all else 2; everything is run."""

    def time(self, call: Callable[[], object]) -> float:
        call()
        plain = isinstance(call, Bound) and isinstance(call.function, DepthHead)
        return 0.008 if plain else 0.002


PLAN = KernelPlan(
    HEADS, grid=(3, 5), rounds=8, warmup=0, compile_seconds=0.0, timer=FakeTimer()
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> KernelReport:
    return measure_kernels(PLAN, CPU, describe_circumstances(("clipdepth", "bench")))


def test_every_op_and_head_is_measured_in_every_form_or_says_why_not(report: KernelReport) -> None:
    kinds = {kind: {c.name for c in report.cases if c.kind == kind} for kind in ("op", "head")}
    assert kinds == {"op": {*ops.__all__} - {"use_triton"}, "head": {*HEADS}}
    assert len(report.cases) == count_cases(PLAN)
    for case in report.cases:
        assert len(case.figures) == len(kernel_forms.FORMS) * len(PLAN.dtypes)
        for figure in case.figures:
            assert (figure.why_not is None) == (figure.milliseconds is not None)
            assert not figure.failed, (case.name, figure)
    whys = {figure.form: figure.why_not for figure in report.case("fast").figures}
    assert "need CUDA" in str(whys["graph"])
    assert "0 s that this run gives to torch.compile" in str(whys["compiled"])


def test_ratios_are_paired_and_errors_are_small(report: KernelReport) -> None:
    for name in HEADS:
        fused = report.case(name).figure("fused", "float32")
        assert fused.speedup == Range(median=4.0, low=4.0, high=4.0)
        assert fused.seconds == (0.002,) * 8
        assert fused.error is not None
        assert fused.error < 1e-5


def test_the_floor_is_that_of_operations_or_of_weights(report: KernelReport) -> None:
    case = report.case("spaceclip")
    assert case.floor_milliseconds == pytest.approx(case.gflops * 1e9 / 800e12 * 1e3)
    assert report.case("up_conv").floor_milliseconds is None
    with torch.device("meta"):
        published = DepthHead(plan_for(CPU).heads["spaceclip"])
    assert head_case("", published, (14, 14), 1, CPU).parameters == 11_663_249
    few = report.case("fast")
    parameters = head_case("", DepthHead(HEADS["fast"]), (3, 5), 1, CPU).parameters
    assert few.floor_milliseconds == pytest.approx(2e3 * (parameters or 0) / 3e12)


def test_the_plans_are_of_the_presets() -> None:
    assert plan_for(torch.device("cuda")).batches == (1, 16)
    assert {c.preset for c in plan_for(CPU).heads.values()} == {"spaceclip", "fast", "guided"}


def test_heads_come_before_ops_and_larger_batches_last() -> None:
    """As what torch.compile's seconds are given to."""
    plan = dataclasses.replace(PLAN, batches=(1, 2))
    order = [(case.kind, case.batch) for case in make_cases(plan, CPU)]
    assert order == [("head", 1)] * 3 + [("op", 1)] * 9 + [("head", 2)] * 3


def test_random_heads_are_alive() -> None:
    """A dead ReLU, or a layer that is the identity, would make any two forms agree."""
    for config in HEADS.values():
        head = random_head(config, (3, 5))
        assert not head.training
        assert all(parameter.any() for parameter in head.parameters())
        with torch.no_grad():
            metres_B1HW = head(random_features(config, (3, 5), 1))
        assert metres_B1HW.std() > 0.01 * metres_B1HW.mean()


def recording_with(record: Record) -> Callable[..., None]:
    """``FusedHead.__init__`` whose graphs are recorded so."""
    make = FusedHead.__init__

    def init(self: FusedHead, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self._graphs._record = record

    return init


def a_case(name: str = "fast") -> Any:
    return head_case(name, random_head(HEADS[name], (2, 2)), (2, 2), 1, CPU)


def forms_of(case: Any, seconds: float = 0.0) -> dict[str, Made]:
    with torch.no_grad():
        made = make_forms(case, (torch.float32,), CPU, Stopwatch(seconds))
    return {one.form: one for one in made}


def test_compiled_is_whole_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compiled(function: nn.Module, **options: Any) -> nn.Module:
        seen.update(options)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(kernel_forms, "imitates_bfloat16", lambda _device: False)
    stopwatch = Stopwatch(1e-9)
    found = make_forms(a_case(), (torch.bfloat16, torch.float32), CPU, stopwatch)
    assert seen == {"fullgraph": True, "dynamic": False, "mode": "default"}
    assert kernel_forms.compile_mode(torch.device("cuda")) == "max-autotune"
    first, second = (one for one in found if one.form == "compiled")
    assert first.call is not None
    assert "are spent" in str(second.why_not)


def test_a_form_that_fails_is_told_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KernelError("out of registers\nand more")

    monkeypatch.setattr(FusedHead, "forward", fails)
    fused = forms_of(a_case())["fused"]
    assert fused.call is None
    assert fused.failed
    assert fused.why_not == "failed: KernelError: out of registers"


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_a_form_that_gives_other_numbers_is_told_and_not_timed(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FusedHead.forward

    def forward(self: FusedHead, *args: Any) -> Tensor:
        return right(self, *args) * wrong

    monkeypatch.setattr(FusedHead, "forward", forward)
    fused = forms_of(a_case())["fused"]
    assert fused.call is None
    assert fused.failed
    assert "gives other numbers" in str(fused.why_not)


@pytest.mark.parametrize(("wrong", "failed"), [(1.0, False), (1.001, True)])
def test_a_graph_whose_replay_gives_other_numbers_is_told_and_not_timed(
    wrong: float, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretended recording: what it was recorded from is right."""

    def record(call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Recording:
        outputs = call()
        return Recording(inputs, outputs, lambda: [x.mul_(wrong) for x in outputs])

    monkeypatch.setattr(GraphCache, "applies", lambda cache, _: cache._limit > 0)
    monkeypatch.setattr(kernel_forms, "obstacle", lambda *_: None)
    monkeypatch.setattr(FusedHead, "__init__", recording_with(record))
    graph = forms_of(a_case())["graph"]
    assert (graph.failed, graph.call is None) == (failed, failed)
    assert ("gives other numbers" in str(graph.why_not)) == failed


def test_a_form_is_checked_where_the_plain_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case, right, fused_right = a_case(), DepthHead.forward, FusedHead.forward

    def fails(self: DepthHead, features: TowerFeatures, *args: Any, **given: Any) -> Tensor:
        if next(iter(features.levels.values())).dtype == torch.float32:
            raise KernelError("no memory")
        return right(self, features, *args, **given)

    monkeypatch.setattr(DepthHead, "forward", fails)
    monkeypatch.setattr(FusedHead, "forward", lambda self, *args: fused_right(self, *args) * 1.001)
    found = forms_of(case)
    assert found["plain"].failed
    assert "gives other numbers" in str(found["fused"].why_not)


def test_a_processor_without_bfloat16_is_not_measured_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_forms, "imitates_bfloat16", lambda _device: True)
    assert "bfloat16" in str(obstacle("plain", torch.bfloat16, CPU))
    assert obstacle("plain", torch.float32, CPU) is None
    found = measure_kernels(PLAN, CPU, describe_circumstances(()))
    assert found.case("fast").figure("fused", "bfloat16").milliseconds is None
    assert "NOT JUDGED: published head, bfloat16, best form" in "\n".join(verdict_lines(found))


def test_files_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    found = run_kernel_bench(
        out, device="cpu", as_json=False, command=("clipdepth", "bench", "kernels"), plan=PLAN
    )
    assert load_kernel_report(out / "fused_cpu.json") == found
    markdown = (out / "fused_cpu.md").read_text(encoding="utf-8")
    assert markdown == to_markdown(found)
    shown = capsys.readouterr().out
    for line in (*verdict_lines(found), *note_lines(found)):
        assert line in markdown
        assert line.split(" (")[0] in " ".join(shown.split())
    assert "`clipdepth bench kernels`" in markdown
    assert "no Triton kernel runs here" in markdown
    assert "`fast`, float32: fused, 2 [2, 2] ms; 4 [4, 4] times as fast" in markdown


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="can't be read"):
        load_kernel_report(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"format": "clipdepth-bench/1"}', encoding="utf-8")
    with pytest.raises(BenchError, match="not a report of clipdepth bench kernels"):
        load_kernel_report(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--device", "gpu"), "--device gpu"),
        (("--preset", "fast"), "bench kernels takes no --preset"),
        (("--sweep-rounds", "9"), "bench kernels takes no --sweep-rounds"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_bench, "measure_kernels", lambda *_: pytest.fail("measured"))
    run = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())


def test_json_on_stdout_and_exit_codes(
    report: KernelReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_bench, "measure_kernels", lambda *_, **__: report)
    run = CliRunner().invoke(app, ["bench", "kernels", "--json"])
    assert run.exit_code == 0, run.output
    assert KernelReport.model_validate(json.loads(run.stdout)) == report
    failing = a_gpu_report(no_figure("graph", failed=True))
    monkeypatch.setattr(kernel_bench, "measure_kernels", lambda *_, **__: failing)
    run = CliRunner().invoke(app, ["bench", "kernels"], env={"COLUMNS": "200"})
    assert run.exit_code == 1
    assert "FAILED (a)" in run.stdout
    assert "a: not measured: a reason" in run.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_every_form_runs() -> None:
    plan = dataclasses.replace(PLAN, timer=None, compile_seconds=1e9, batches=(1, 2))
    cuda = torch.device("cuda")
    found = measure_kernels(plan, cuda, describe_circumstances((), cuda))
    assert [f for case in found.cases for f in case.figures if f.why_not is not None] == []
