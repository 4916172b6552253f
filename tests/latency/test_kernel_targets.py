"""How ``clipdepth bench kernels`` judges a report; what is committed of it is what is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipdepth_plugin.latency.kernel_report import to_markdown
from clipdepth_plugin.latency.kernel_schema import (
    KernelFigure,
    KernelReport,
    load_kernel_report,
)
from clipdepth_plugin.latency.kernel_verdict import best_form, judge
from tests.tiny.kernel_reports import a_figure, a_gpu_report, no_figure


def results(report: KernelReport) -> list[str]:
    return [verdict.result for verdict in judge(report)]


ON_CPU = ["not judged"] * 2


def test_a_gpu_that_meets_every_target() -> None:
    assert results(a_gpu_report()) == ["pass"] * 5 + ON_CPU


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        # 0.199 +- 1%: the worse end of the interval decides.
        (a_figure("graph", 0.199, 9.6), ["miss", "pass", "pass"]),
        (a_figure("graph", 0.19, 7.9), ["pass", "miss", "pass"]),
        (a_figure("compiled", 0.18), ["pass", "pass", "miss"]),
        (no_figure("compiled", failed=False), ["pass", "pass", "not judged"]),
        (no_figure("graph", failed=True), ["miss", "miss", "miss"]),
    ],
)
def test_a_gpu_that_does_not(figure: KernelFigure, expected: list[str]) -> None:
    assert results(a_gpu_report(figure)) == [*expected, "pass", "pass", *ON_CPU]


def test_another_gpu_is_judged_and_named() -> None:
    first = judge(a_gpu_report(gpu="NVIDIA A100-SXM4-80GB"))[0]
    assert first.result == "pass"
    assert "the target is of an H100" in first.measured


def test_a_gpu_report_says_what_its_times_are() -> None:
    markdown = to_markdown(a_gpu_report())
    assert "# Plain and fused heads on NVIDIA H100" in markdown
    assert "from an idle GPU to an idle GPU" in markdown


def test_the_committed_runs_are_what_the_results_say() -> None:
    results_folder = Path(__file__).parents[2] / "results"
    summary = (results_folder / "kernels.md").read_text(encoding="utf-8")
    runs = []
    for name in ("fused_cpu", "fused_cpu_again"):
        runs.append(load_kernel_report(results_folder / f"{name}.json"))
        markdown = (results_folder / f"{name}.md").read_text(encoding="utf-8")
        assert markdown == to_markdown(runs[-1])
    assert len({run.environment.commit for run in runs}) == 1
    on_gpu = load_kernel_report(results_folder / "fused_cuda.json")
    assert (results_folder / "fused_cuda.md").read_text(encoding="utf-8") == to_markdown(on_gpu)
    for verdict in on_gpu.verdicts:
        figure = re.search(r"[\d.]+ \[[\d.]+, [\d.]+\]", verdict.measured)
        assert figure is None or figure[0] in summary, verdict
    for head in ("spaceclip", "fast", "guided"):
        for dtype in ("float32", "bfloat16"):
            row = [f"| `{head}` | {dtype} |"]
            for run in runs:
                best = best_form(run.case(head), dtype)
                assert best is not None
                over = best.speedup_over_float32
                assert over is not None
                row.append(f"{best.form}")
                row.append(f"{over.median:.2f} [{over.low:.2f}, {over.high:.2f}]")
            assert row[1] == row[3]
            assert f"{row[0]} {row[1]} | {row[2]} | {row[4]} |" in summary
