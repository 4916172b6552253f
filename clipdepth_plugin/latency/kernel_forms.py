"""The forms of a case, made and checked: one that is not right is not timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from clipdepth_plugin.latency.forms import FORMS as HEAD_FORMS
from clipdepth_plugin.latency.kernel_cases import Case, tensors_of
from clipdepth_plugin.latency.kernel_schema import Form
from clipdepth_plugin.precision import imitates_bfloat16

FORMS: tuple[Form, ...] = get_args(Form)

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Relative errors that a fused form may have, or ``SLACK`` times the plain module's in that dtype:
group norms of random heads amplify rounding, which falls differently in the two. The tests hold
the forms to less; here a kernel that computes something else is kept out of the table."""
SLACK = 2.0

CALLS: dict[Form, int] = {"graph": 3}
"""Calls until a form runs as it is timed, where not the first does: a head's CUDA graph is recorded
at the second, and replayed from the third on."""


@dataclass
class Stopwatch:
    """Seconds that torch.compile may take in all.

    Attributes:
        limit: After so many nothing more is compiled; what is at work then is finished.
        spent: So far.
    """

    limit: float
    spent: float = 0.0

    @property
    def obstacle(self) -> str | None:
        """Why nothing more is compiled."""
        if self.spent < self.limit:
            return None
        return f"the {self.limit:g} s that this run gives to torch.compile are spent"


@dataclass(frozen=True)
class Made:
    """A form, ready to be timed, or why there is none.

    Attributes:
        form: Which.
        dtype: Of weights and inputs.
        call: Runs it; None where it is not to be timed.
        why_not: The reason, then.
        failed: Whether it should have run here.
        error: Relative, against float64; None where it did not run.
        first_call: Seconds until it ran as it is timed.
    """

    form: Form
    dtype: torch.dtype
    call: Callable[[], object] | None = field(default=None, repr=False)
    why_not: str | None = None
    failed: bool = False
    error: float | None = None
    first_call: float | None = None

    @property
    def name(self) -> str:
        """Names its times."""
        return f"{self.form}, {dtype_name(self.dtype)}"


def make_forms(
    case: Case, dtypes: tuple[torch.dtype, ...], device: torch.device, compiling: Stopwatch
) -> list[Made]:
    """Every form in every dtype; a fused one that gives other numbers than the module is not timed.

    Args:
        case: What is made.
        dtypes: Of weights and inputs.
        device: Where the case is.
        compiling: What is left for torch.compile.
    """
    exact = flatten(case.plain(torch.float64)())
    found = []
    for dtype in dtypes:
        allowed = TOLERANCES[dtype]
        for form in FORMS:
            made = _make(case, form, dtype, device, compiling, exact, allowed)
            if form == "plain" and made.error is not None:
                allowed = max(allowed, SLACK * made.error)
            found.append(made)
    return found


def _make(
    case: Case,
    form: Form,
    dtype: torch.dtype,
    device: torch.device,
    compiling: Stopwatch,
    exact: Tensor,
    allowed: float,
) -> Made:
    why_not = obstacle(form, dtype, device)
    if why_not is None and form == "compiled":
        why_not = compiling.obstacle
    if why_not is not None:
        return Made(form, dtype, why_not=why_not)
    start = time.perf_counter()
    try:
        call = _call_of(case, form, dtype, device)
        for _ in range(CALLS.get(form, 1)):
            out = call()
        error = relative_error(flatten(out), exact)
    except Exception as problem:  # noqa: BLE001 (compilers and drivers raise anything; it is told)
        why = f"failed: {type(problem).__name__}: {first_line(problem)}"
        return Made(form, dtype, why_not=why, failed=True)
    finally:
        took = time.perf_counter() - start
        compiling.spent += took if form == "compiled" else 0.0
    if form in ("fused", "graph") and not error <= allowed:  # NaN, too
        why = f"gives other numbers: relative error {error:.2g}, allowed {allowed:.2g}"
        return Made(form, dtype, why_not=why, failed=True, error=error, first_call=took)
    return Made(form, dtype, call, error=error, first_call=took)


def obstacle(form: Form, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a device can't run a form in a dtype; None where it can."""
    if dtype == torch.bfloat16 and imitates_bfloat16(device):
        return "this processor has no instructions for bfloat16"
    return None if form == "plain" else HEAD_FORMS[form].obstacle(device)


def compile_mode(device: torch.device) -> str:
    """torch.compile's mode: the one that searches longest on a GPU."""
    return "max-autotune" if device.type == "cuda" else "default"


def _call_of(
    case: Case, form: Form, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    match form:
        case "plain":
            return case.plain(dtype)
        case "compiled":
            bound = case.plain(dtype)
            # Whole or not at all: a break, or one recompilation too many, is an error.
            compiled: Any = torch.compile(
                bound.function, fullgraph=True, dynamic=False, mode=compile_mode(device)
            )
            return lambda: compiled(*bound.arguments)
        case "fused":
            return case.fused(dtype)
        case "graph":
            return case.graph(dtype)


def flatten(out: Any) -> Tensor:
    """All that comes out, as one float64 vector."""
    return torch.cat([x.double().flatten() for x in tensors_of(out)])


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference, over that of the exact one's deviation from its mean."""
    spread = (exact - exact.mean()).norm().clamp_min(1e-12)
    return float((found - exact).norm() / spread)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``float32``."""
    return str(dtype).removeprefix("torch.")


def first_line(problem: Exception) -> str:
    """Of its message; the rest of a compiler's is long."""
    return next(iter(str(problem).strip().splitlines()), "")
