"""Kernels without a GPU: run in Triton's interpreter, and built for real targets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.film import FiLM
from clipdepth_plugin.kernels import dispatch
from clipdepth_plugin.kernels.film_project import film_project

SCRIPTS = Path(__file__).parent / "scripts"
# Shared memory a block may have, in bytes (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


# Tokens and weights of different dtypes: relative errors of the kernel.
MIXED = """
import json, torch
from clipdepth_plugin.kernels.film_project import film_project, film_project_reference
generator = torch.Generator().manual_seed(0)
shapes = ((2, 1 + 15, 384), (2, 384), (2, 384), (40, 384), (40,))
x, *rest = (torch.randn(shape, generator=generator) for shape in shapes)
errors = {}
for tokens in (torch.float32, torch.bfloat16, torch.float16):
    for others in (torch.float32, torch.bfloat16, torch.float16):
        mixed = (x.to(tokens), *(y.to(others) for y in rest))
        out = film_project(*mixed, prefix=1, triton=True)
        assert out.dtype == tokens
        exact = film_project_reference(*(y.double() for y in mixed), prefix=1)
        errors[f"{tokens}, {others}"] = ((out.double() - exact).norm() / exact.norm()).item()
print(json.dumps(errors))
"""


def run_script(name: str, *arguments: str, interpret: bool) -> Any:
    return run_python(str(SCRIPTS / name), *arguments, interpret=interpret)


def run_python(*arguments: str, interpret: bool) -> Any:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_film_project_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    for case, error in run_script("run_film_project.py", interpret=True).items():
        assert error <= (1e-5 if case.endswith("float32") else 1e-2), case


def test_film_project_compiles_for_real_targets() -> None:
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    report = run_script("compile_film_project.py", *map(str, SHARED_LIMIT), interpret=False)
    assert len(report) == 6
    for target, built in report.items():
        capability = int(target.split()[0].removeprefix("sm_"))
        assert built["cubin"] > 0
        assert built["spills"] == 0, target
        assert built["shared"] <= SHARED_LIMIT[capability], target


def arguments() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 7, 8),
        torch.randn(2, 8),
        torch.randn(2, 8),
        torch.randn(3, 8),
        torch.ones(3),
    )


def test_reference_is_what_the_head_computes() -> None:
    x, _, _, weight, bias = arguments()
    context, film = torch.randn(2, 8), FiLM(8, 4)
    gamma, beta = film.mlp(context).chunk(2, dim=-1)
    out = film_project(x, gamma, beta, weight, bias, prefix=1)
    expected = torch.nn.functional.linear(film(x[:, 1:], context), weight, bias)
    torch.testing.assert_close(out, expected)


def test_dispatch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        film_project(*arguments())
        film_project(*arguments())
    assert [r.getMessage() for r in caplog.records] == [
        "film_project runs as the reference: its tensors are on cpu, and Triton runs on cuda only"
    ]
    with pytest.raises(KernelError, match="asked for, but its tensors are on cpu"):
        film_project(*arguments(), triton=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KernelError, match="triton is not installed"):
        film_project(*arguments(), triton=True)
    assert film_project(*arguments(), triton=False).shape == (2, 7, 3)


@pytest.mark.parametrize("position", range(5))
def test_a_needed_gradient_keeps_the_kernel_away(
    position: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel could run, but its output would carry no gradient."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch._log_once.cache_clear()
    inputs = list(arguments())
    inputs[position].requires_grad_()
    with pytest.raises(KernelError, match="asked for, but a gradient is needed"):
        film_project(*inputs, triton=True)
    with caplog.at_level(logging.INFO):
        film_project(*inputs).sum().backward()
    assert inputs[position].grad is not None
    assert [r.getMessage() for r in caplog.records] == [
        "film_project runs as the reference: a gradient is needed, and the kernel gives none"
    ]


def test_no_gradient_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: Tensor, prefix: int) -> Tensor:
        return torch.zeros(1)

    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("clipdepth_plugin.kernels.film_project._launch", kernel)
    inputs = [x.requires_grad_() for x in arguments()]
    with torch.no_grad():
        assert film_project(*inputs, triton=True).shape == (1,)
    with pytest.raises(KernelError, match="an input is float64"):
        film_project(*(x.detach().double() for x in inputs), triton=True)


@pytest.mark.parametrize("tokens", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("rest", [torch.bfloat16, torch.float32], ids=str)
def test_reference_sums_in_float32_and_gives_the_tokens_dtype(
    tokens: torch.dtype, rest: torch.dtype
) -> None:
    x, *others = arguments()
    mixed = (x.to(tokens), *(y.to(rest) for y in others))
    out = film_project(*mixed, prefix=1, triton=False)
    assert out.dtype == tokens
    exact = film_project(*(y.double() for y in mixed), prefix=1, triton=False)
    torch.testing.assert_close(
        out, exact.to(tokens), rtol=1e-2 if tokens != x.dtype else 1e-5, atol=1e-5
    )


def test_tokens_and_weights_of_two_dtypes_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    for case, error in run_python("-c", MIXED, interpret=True).items():
        # No more than the rounding of the output itself.
        assert error <= (1e-5 if case.startswith("torch.float32") else 4e-3), case


@pytest.mark.parametrize(
    ("position", "message"),
    [(1, r"gamma is \(1, 8\)"), (3, r"weight is \(1, 8\)|bias is"), (4, r"bias is \(1,\)")],
)
def test_bad_shapes(position: int, message: str) -> None:
    bad = list(arguments())
    bad[position] = bad[position][:1]
    with pytest.raises(KernelError, match=message):
        film_project(*bad)
    with pytest.raises(KernelError, match="prefix 8 of 7 tokens"):
        film_project(*arguments(), prefix=8)


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU; the interpreter and compile-only tests above stand in",
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_film_project_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    on_gpu = [x.to("cuda", dtype) for x in arguments()]
    out = film_project(*on_gpu, prefix=1, triton=True)
    exact = film_project(*(x.double() for x in arguments()), prefix=1, triton=False)
    assert (out.double().cpu() - exact).norm() / exact.norm() <= tolerance
    x, *rest = arguments()
    mixed = (x.to("cuda", dtype), *(y.to("cuda") for y in rest))
    outs = [film_project(*mixed, prefix=1, triton=choice) for choice in (True, False)]
    assert outs[0].dtype == outs[1].dtype == dtype
    assert (outs[0] - outs[1]).double().norm() / outs[1].double().norm() <= tolerance
