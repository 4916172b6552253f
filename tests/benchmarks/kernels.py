"""Times every fused op and preset's head: plain, compiled, fused; plain and fused in CUDA graphs.

    make bench-kernels                  # ARGS="--device cuda" on a GPU

Writes results/kernels_cpu.json and .md, or kernels_cuda. All forms and dtypes of a case run in the
same interleaved rounds. Plain is a head's module and an op's PyTorch reference, in eager mode;
plain-graph is the same in a CUDA graph, as it is: what anybody would try before a kernel.
Each form is first checked against plain in float64: one that fails or gives other numbers is named
in the table, not timed, and makes the exit code 1. On a GPU times are from an idle GPU to an idle
GPU, launches included.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin import HeadConfig
from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.forms import FORMS
from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.latency.resources import keep_freed_memory
from clipdepth_plugin.latency.rounds import Timer, Variant, run_rounds, timer_for
from clipdepth_plugin.precision import imitates
from tests.benchmarks.kernel_cases import Case, head_case, op_cases, random_head, tensors_of

RESULTS = Path(__file__).resolve().parents[2] / "results"
FORM_NAMES = ("plain", "plain-graph", "compiled", "fused", "graph")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Relative errors that a fused form may have, or ``SLACK`` times plain's in that dtype:
norms of random heads amplify rounding. The tests hold the forms to less."""
SLACK = 2.0


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        heads: Name -> config; an op is taken from the first head that calls it.
        grid: (h, w) of the tokens.
        batches: Of the heads; ops have batch 1.
        rounds: Timed rounds of each case.
        compiled: Whether torch.compile is measured.
        dtypes: Of weights and inputs.
        timer: Times a call; None chooses by the device.
    """

    heads: Mapping[str, HeadConfig]
    grid: tuple[int, int] = (14, 14)
    batches: tuple[int, ...] = (1,)
    rounds: int = 20
    compiled: bool = True
    dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCES)
    timer: Timer | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Form:
    """A form of a case in a dtype: a call to time, or why there is none.

    Attributes:
        name: In ``FORM_NAMES``.
        dtype: Of weights and inputs.
        call: None where it is not timed.
        reason: Why, then.
        failed: Whether it should have run, and did not or gave other numbers.
        error: Relative to plain in float64; None where it did not run.
    """

    name: str
    dtype: torch.dtype
    call: Callable[[], object] | None = field(default=None, repr=False)
    reason: str = ""
    failed: bool = False
    error: float | None = None

    @property
    def key(self) -> str:
        """Names its times."""
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}"


def make_cases(plan: Plan, device: torch.device) -> list[Case]:
    """Whole heads at every batch, then ops."""
    heads = {name: random_head(config, plan.grid).to(device) for name, config in plan.heads.items()}
    cases = [head_case(n, h, plan.grid, batch) for n, h in heads.items() for batch in plan.batches]
    found: dict[str, Case] = {}
    for name, head in heads.items():
        for case in op_cases(name, head, plan.grid):
            found.setdefault(case.name, case)
    return [*cases, *found.values()]


def make_forms(
    case: Case,
    device: torch.device,
    *,
    compiled: bool = True,
    dtypes: Sequence[torch.dtype] = tuple(TOLERANCES),
) -> list[Form]:
    """Every form in every dtype, checked."""
    found: list[Form] = []
    for dtype in dtypes:
        allowed = TOLERANCES[dtype]
        exact = _flatten(case.exact(dtype)())
        for name in FORM_NAMES if compiled else [n for n in FORM_NAMES if n != "compiled"]:
            reason = obstacle(case, name, dtype, device)
            made = Form(name, dtype, reason=reason) if reason else _make(case, name, dtype, exact)
            if name == "plain" and made.error is not None:
                allowed = max(allowed, SLACK * made.error)
            if made.error is not None and name != "plain" and not made.error <= allowed:  # or NaN
                reason = f"gives other numbers: relative error {made.error:.2g} > {allowed:.2g}"
                made = Form(name, dtype, reason=reason, failed=True, error=made.error)
            found.append(made)
    return found


def obstacle(case: Case, name: str, dtype: torch.dtype, device: torch.device) -> str:
    """Why a device can't run a form in a dtype; "" where it can."""
    if dtype == torch.bfloat16 and imitates(torch.bfloat16, device):
        return "this processor has no instructions for bfloat16"
    if case.is_op and name == "fused" and device.type != "cuda":
        return "the Triton kernel needs CUDA"
    return (FORMS["eager" if name == "plain" else name].obstacle(device)) or ""


def _make(case: Case, name: str, dtype: torch.dtype, exact: Tensor) -> Form:
    try:
        call = _compiled(case, dtype) if name == "compiled" else case.form(name)(dtype)
        for _ in range(3):  # a head's CUDA graph is recorded at the second call
            out = call()
    except Exception as problem:  # noqa: BLE001 (compilers and drivers raise anything)
        first_line = next(iter(str(problem).strip().splitlines()), "")
        reason = f"failed: {type(problem).__name__}: {first_line}"
        return Form(name, dtype, reason=reason, failed=True)
    spread = (exact - exact.mean()).norm().clamp_min(1e-12)
    return Form(name, dtype, call, error=float((_flatten(out) - exact).norm() / spread))


def _compiled(case: Case, dtype: torch.dtype) -> Callable[[], object]:
    bound = case.plain(dtype)
    mode = "reduce-overhead" if case.on_cuda else None
    compiled: Any = torch.compile(bound.function, fullgraph=True, dynamic=False, mode=mode)
    return lambda: compiled(*bound.arguments, **bound.options)


def _flatten(out: Any) -> Tensor:
    return torch.cat([x.double().flatten() for x in tensors_of(out)])


def measure(case: Case, plan: Plan, device: torch.device) -> dict[str, Any]:
    """Checks and times a case: a row for each form and dtype."""
    with torch.no_grad():
        forms = make_forms(case, device, compiled=plan.compiled, dtypes=plan.dtypes)
        variants = [Variant(made.key, made.call) for made in forms if made.call is not None]
        times = run_rounds(variants, plan.rounds, plan.timer or timer_for(device))
    torch._dynamo.reset()  # torch keeps a limited number of versions of one function
    rows = []
    for made in forms:
        row: dict[str, Any] = {
            "form": made.name,
            "dtype": str(made.dtype).removeprefix("torch."),
            "error": made.error,
            "failed": made.failed,
            "reason": made.reason,
        }
        if (seconds := times.get(made.key)) is not None:
            row["milliseconds"] = str(median_interval(1e3 * seconds))
            row["seconds"] = [round(float(s), 8) for s in seconds]
            if (plain := times.get(Form("plain", made.dtype).key)) is not None:
                row["speedup"] = str(median_interval(plain / seconds))
        rows.append(row)
    return {"name": case.name, "place": case.place, "forms": rows}


def to_markdown(cases: Sequence[Mapping[str, Any]], environment: str, rounds: int) -> str:
    """One table: a row for each form, its times as fast as plain in the same dtype."""
    header = ("what", "dtype", "form", "ms", "times as fast as plain", "relative error")
    cells, notes = [], dict[str, None]()
    for case in cases:
        for form in case["forms"]:
            if form["reason"] and not form["failed"]:
                notes[f"- not measured, {form['dtype']} {form['form']}: {form['reason']}"] = None
                continue
            error = "" if form["error"] is None else f"{form['error']:.1e}"
            result = form.get("milliseconds") or f"FAILED: {form['reason']}"
            speedup = form.get("speedup", "")
            cells.append((case["name"], form["dtype"], form["form"], result, speedup, error))
    method = (
        f"{rounds} interleaved rounds of each case; medians with their bootstrap 95% interval, "
        "ratios paired. Errors are relative to plain in float64."
    )
    places = [f"- {case['name']}: {case['place']}" for case in cases]
    parts = [["# Plain and fused heads and ops"], [method], markdown_table(header, cells)]
    parts += [[*notes], places, [environment]]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def run(plan: Plan, device: torch.device, output: Path, command: Sequence[str]) -> int:
    """Measures every case, writes both files, returns the number of failed forms."""
    keep_freed_memory()
    environment = describe_environment(command, device, "float32,bfloat16")
    cases = []
    for case in make_cases(plan, device):
        sys.stderr.write(f"{case.name}\n")
        cases.append(measure(case, plan, device))
    report = {"environment": environment.model_dump(), "rounds": plan.rounds, "cases": cases}
    stem = f"kernels_{device.type}"
    (output / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = to_markdown(cases, describe(environment), plan.rounds)
    (output / f"{stem}.md").write_text(text, encoding="utf-8")
    return sum(form["failed"] for case in cases for form in case["forms"])


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    options = parser.parse_args()
    device = torch.device(options.device)
    plan = Plan(
        {preset: HeadConfig(width=768, preset=preset) for preset in PRESETS},
        batches=(1, 16) if device.type == "cuda" else (1,),
        rounds=options.rounds,
        compiled=not options.no_compile,
    )
    if failed := run(plan, device, options.output, ("make", "bench-kernels", *sys.argv[1:])):
        raise SystemExit(f"{failed} forms failed or gave other numbers: see the table")


if __name__ == "__main__":
    main()
