"""results/gpu.py in a dry run: every line of it, but for the GPU, which a tape stands in for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from clipdepth_plugin.fused.graphs import GraphCache
from clipdepth_plugin.latency import forms
from tests.benchmarks import kernel_cases, kernels
from tests.results_scripts import ROOT, load_script
from tests.tiny.fused_heads import Tape


def test_a_dry_run_measures_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, gpu_measure, tape = load_script("gpu"), load_script("gpu_measure"), Tape()
    monkeypatch.setattr(GraphCache, "applies", lambda cache, tensors: not tape.recording)
    monkeypatch.setattr(
        GraphCache, "_make", lambda cache, given, call: tape(lambda: call(given), given)
    )
    monkeypatch.setattr(kernel_cases, "record_cuda", tape)
    monkeypatch.setattr(gpu_measure.Setting, "graphs", True)
    for name in ("graph", "plain-graph"):
        there = dataclasses.replace(forms.FORMS[name], obstacle=lambda device: None)
        monkeypatch.setitem(forms.FORMS, name, there)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(kernels, "imitates", lambda dtype, device: False)
    run = ["--tiny", "--device", "cpu", "--rounds", "8", "--output", str(tmp_path)]
    assert [gpu.main([part, *run]) for part in gpu.PARTS] == [0] * len(gpu.PARTS)
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(report) == list(gpu.PARTS)
    notes = {row.get("note") or "" for part in report.values() for row in part["rows"]}
    allowed = ("CUDA graphs need CUDA", "the Triton kernel needs CUDA", "failed: KernelError: ")
    assert [n for n in notes if n and "take it out" not in n and not n.startswith(allowed)] == []
    measured = {row["form"] for row in report["towers"]["rows"] if row["ms"]}
    assert measured >= {"alone", "fast, graph", "fast, tower and head in one graph"}
    kept = report["heads"]
    assert gpu.main([*run, "worth", "--seconds", "0"]) == 0
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "not measured: no time was left" in page
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["heads"] == kept


def test_a_case_that_breaks_the_gpu_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, synchronised = load_script("gpu"), itertools.count(1)

    def part(setting: Any) -> Iterator[Any]:
        """Cases of a test."""
        for name in ("first", "second", "third"):
            yield functools.partial(case, name)

    def case(name: str) -> list[dict[str, str]]:
        if name == "second":
            raise RuntimeError("an illegal memory access was encountered\nmore")
        return [{"what": name, "form": "done"}]

    def synchronize() -> None:
        if next(synchronised) == 2:
            raise RuntimeError("an illegal memory access was encountered")

    def in_this_process(command: list[str], timeout: float, check: bool) -> Any:
        runs.append(command[2:])
        return subprocess.CompletedProcess(command, gpu.main(command[2:]))

    runs: list[list[str]] = []
    monkeypatch.setattr(gpu, "PARTS", {"one": part, "other": part})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(gpu, "describe_environment", lambda *_: Mock(model_dump=SEEN.copy))
    monkeypatch.setattr(subprocess, "run", in_this_process)
    assert gpu.main(["--device", "cuda", "--output", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    for name in ("one", "other"):
        assert [row["what"] for row in report[name]["rows"]] == ["first", "second", "third"]
        assert report[name]["rows"][1]["note"].endswith(
            "RuntimeError: an illegal memory access was encountered"
        )
    assert [(run[0], run[-1] == "--go-on") for run in runs][:3] == [
        ("one", False),
        ("one", True),
        ("other", False),
    ]


SEEN = {"gpu": "a GPU", "cpu": "a CPU", "versions": {}, "created": "today"}


def test_it_runs_where_the_package_is_not_installed_and_tests_are_anothers(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    script, env = str(ROOT / "results" / "gpu.py"), {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, script, "worth", "--tiny", "--device", "cpu", "--seconds", "0"]
    subprocess.run([*run, "--output", str(tmp_path)], cwd=tmp_path, env=env, check=True)
    assert "no time was left" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
