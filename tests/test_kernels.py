"""Kernels without a GPU: run in Triton's interpreter, and built for real targets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.dual_path import SkipGate
from clipdepth_plugin.decoders.pathways import FiLM
from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.kernels import dispatch, launch

ROOT = Path(__file__).resolve().parents[1]
OPS = [name for name in ops.__all__ if name != "use_triton"]
# Shared memory a block may have, in bytes (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


# What every op is tried on, by what stands in its cases' names ("3x5x7x384+5": views, grid, width
# and prefix tokens of those that read a tower's; "3x20x5x3": views, channels, grid of the others).
BATCHES = {0, 1, 3}
GRIDS = {"13x17", "37x37"}
WIDTHS = {384, 768, 1024, 1152}
PREFIXES = {0, 1, 5}
READ_TOKENS = ("film_project", "normed_project")


def check_coverage(op: str, cases: list[str]) -> None:
    """Whether an op's cases cover what they must."""
    assert {int(case.split("x")[0]) for case in cases} >= BATCHES, op
    if op != "film_mlp":
        assert all(any(grid in case for case in cases) for grid in GRIDS), op
    if op == "film_mlp" or op in READ_TOKENS:
        assert {int(case.partition("+")[0].split("x")[-1]) for case in cases} >= WIDTHS, op
    if op in READ_TOKENS:
        assert {int(case.partition("+")[2]) for case in cases} >= PREFIXES, op


TF32 = {
    "film_project": 5e-4,
    "join_conv": 5e-4,
    "up_conv": 5e-4,
    "gated_skips": 5e-4,
    "depth_readout": 1e-3,
    "convex_depth": 5e-4,
}
"""Relative errors of ops that stand in for convolutions, where float32 is multiplied in TF32."""


def check_errors(errors: dict[str, float], *, tf32: bool = False) -> None:
    """Whether all are as small as their dtype lets them be."""
    for case, error in errors.items():
        exact = TF32.get(case.split()[0], 1e-5) if tf32 else 1e-5
        assert error <= (exact if case.endswith("float32") else 1e-2), case


def run_script(name: str, *arguments: str, interpret: bool) -> Any:
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run(
        [sys.executable, "-m", f"tests.scripts.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert "Triton not available" not in run.stderr
    return json.loads(run.stdout)


def test_every_op_in_the_interpreter() -> None:
    """Forward against float64, whatever was allocated filled with NaN first."""
    errors = run_script("run_kernels", interpret=True)
    assert {case.split()[0] for case in errors} == set(OPS)
    for op in OPS:
        check_coverage(op, [case.split()[1] for case in errors if case.split()[0] == op])
    check_errors(errors)


def test_nan_stays_nan() -> None:
    """A maximum with 0 would hide what a tower that overflows gives."""
    assert run_script("run_nan", interpret=True) is True


def test_tf32_is_as_exact_as_it_can_be() -> None:
    """What torch's default settings make of convolutions in float32; matrix products stay exact."""
    errors = run_script("run_kernels", *TF32, "film_mlp", "--tf32", interpret=True)
    check_errors(errors, tf32=True)
    for op in TF32:  # it was TF32
        assert max(e for case, e in errors.items() if case.split()[0] == op) > 1e-5, op


def test_float32_is_multiplied_as_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not launch.tf32_allowed("convolution")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert launch.tf32_allowed("convolution")
    assert not launch.tf32_allowed("matmul")
    # torch before 2.9.
    matmul = SimpleNamespace(allow_tf32=True)
    older = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=False), cuda=SimpleNamespace(matmul=matmul)
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "backends", older)
        allowed = launch.tf32_allowed("convolution"), launch.tf32_allowed("matmul")
    assert allowed == (False, True)


def test_rocm_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its devices are called cuda, too."""
    assert dispatch.triton_runs_on(torch.device("cuda"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not dispatch.triton_runs_on(torch.device("cuda"))
    with pytest.raises(KernelError, match="asked for, but torch is built for ROCm"):
        dispatch.use_triton("up_conv", torch.device("cuda"), True)


def test_gradients_whole_heads_and_export_in_the_interpreter() -> None:
    for case, error in run_script("run_kernel_gradients", interpret=True).items():
        allowed = {"gradient": 1e-5, "float32": 1e-4, "bfloat16": 1e-2}[case.split()[-1]]
        assert error <= allowed, (case, error)


def test_every_kernel_compiles_for_real_targets() -> None:
    report = run_script("compile_kernels", *map(str, SHARED_LIMIT), interpret=False)
    kernels = {built["kernel"] for built in report}
    expected = {f"_{op}_fwd_kernel" for op in OPS if op != "film_mlp"} | {"_linear_act_fwd_kernel"}
    assert kernels == expected
    assert {built["sm"] for built in report} == set(SHARED_LIMIT)
    for built in report:
        assert built["cubin"] > 0
        assert built["stack"] == 0, built  # no register is spilled
        assert built["shared"] <= SHARED_LIMIT[built["sm"]], built


def test_where_triton_is_not_installed() -> None:
    """PyTorch's forms run and say why; asked for by name, the kernels are refused, on a GPU too."""
    seen = run_script("without_triton", interpret=False)
    assert seen["imported"] is False
    assert all(error < 1e-4 for error in seen["errors"].values())
    reason = "up_conv: the Triton kernel was asked for, but triton is not installed"
    assert seen["refusals"] == {"cpu": reason, "cuda": reason}
    assert seen["chosen on cuda"] is False
    said = [f"{op} runs as the reference: triton is not installed" for op in OPS]
    assert sorted(seen["said"]) == sorted(said), "once for each op"


def film_arguments() -> tuple[Any, ...]:
    torch.manual_seed(0)
    levels = [torch.randn(2, 6, 8), torch.randn(2, 6, 8)]
    return levels, torch.randn(1, 2, 16), torch.randn(5, 8), torch.ones(5), (3, 2)


def test_film_project_is_what_the_head_computes() -> None:
    levels, _, weight, bias, channels = film_arguments()
    context, film = torch.randn(2, 8), FiLM(8, 4)
    first, second = ops.film_project(levels, film.mlp(context)[None], weight, bias, channels)
    modulated = film(levels[0], context)
    torch.testing.assert_close(first, modulated @ weight[:3].T + bias[:3])
    torch.testing.assert_close(second, levels[1] @ weight[3:].T + bias[3:])


def test_gated_skips_are_what_the_head_computes() -> None:
    torch.manual_seed(0)
    u, skip, gate = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), SkipGate(4)
    weight, bias = gate.conv.weight[:, :, 0, 0], gate.conv.bias
    assert bias is not None
    torch.testing.assert_close(ops.gated_skips(u, skip, None, weight, bias), gate(skip, u))


def test_dispatch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        ops.film_project(*film_arguments())
        ops.film_project(*film_arguments())
    assert [r.getMessage() for r in caplog.records] == [
        "film_project runs as the reference: its tensors are on cpu, and Triton runs on cuda only"
    ]
    with pytest.raises(KernelError, match="asked for, but its tensors are on cpu"):
        ops.film_project(*film_arguments(), triton=True)
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    with pytest.raises(KernelError, match="triton is not installed"):
        ops.film_project(*film_arguments(), triton=True)
    assert len(ops.film_project(*film_arguments(), triton=False)) == 2


def up_arguments() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 3, 4, 4), torch.randn(8, 3, 2, 2), torch.randn(4, 4, 2)]


@pytest.mark.parametrize("position", range(3))
def test_a_needed_gradient_keeps_a_forward_only_kernel_away(
    position: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel could run, but its output would carry no gradient."""
    pytest.importorskip("triton", reason="triton comes with torch on Linux only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch._log_once.cache_clear()
    inputs = up_arguments()
    inputs[position].requires_grad_()
    with pytest.raises(KernelError, match="asked for, but a gradient is needed"):
        ops.up_conv(*inputs, relu=True, triton=True)
    with caplog.at_level(logging.INFO):
        ops.up_conv(*inputs, relu=True).sum().backward()
    assert inputs[position].grad is not None
    assert [r.getMessage() for r in caplog.records] == [
        "up_conv runs as the reference: a gradient is needed, and the kernel gives none"
    ]
    with pytest.raises(KernelError, match="an input is float64"), torch.no_grad():
        ops.up_conv(*(x.double() for x in inputs), relu=True, triton=True)


def bad_shapes() -> dict[str, Callable[[], Any]]:
    levels, film, weight, bias, channels = film_arguments()
    x, phases, up_bias = up_arguments()
    return {
        r"film_project: weight is \(4, 8\), expected \(5, 8\)": lambda: ops.film_project(
            levels, film, weight[:4], bias, channels
        ),
        r"film_project: film is \(3, 2, 16\), expected \(2, 2, 16\)": lambda: ops.film_project(
            levels, film.expand(3, -1, -1), weight, bias, channels
        ),
        "film_project: 1 channels for 2 levels": lambda: ops.film_project(
            levels, film, weight, bias, (5,)
        ),
        r"up_conv: weight is \(7, 3, 2, 2\)": lambda: ops.up_conv(
            x, phases[:7], up_bias, relu=True
        ),
        r"join_conv: residual is \(1, 3, 4, 4\), expected \(1, 2, 4, 4\)": lambda: ops.join_conv(
            x, None, torch.ones(2, 3, 3, 3), torch.ones(2), residual_BOHW=x, relu=True
        ),
        r"gated_skips: structural is \(1, 3, 2, 2\)": lambda: ops.gated_skips(
            x, x, x[..., :2, :2], torch.ones(6, 3), torch.ones(6)
        ),
    }


@pytest.mark.parametrize("message", bad_shapes())
def test_bad_shapes(message: str) -> None:
    with pytest.raises(KernelError, match=message):
        bad_shapes()[message]()


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU; the interpreter and compile-only tests above stand in",
)
def test_every_op_on_a_gpu() -> None:
    for tf32 in (False, True):
        options = ["--tf32"] if tf32 else []
        errors = run_script("run_kernels", "--device", "cuda", *options, interpret=False)
        assert {case.split()[0] for case in errors} == set(OPS)
        check_errors(errors, tf32=tf32)
