"""results/gpu.py in a dry run: every line of it, but for the GPU, which a tape stands in for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from clipdepth_plugin.fused.graphs import GraphCache
from clipdepth_plugin.latency import forms
from tests.benchmarks import kernel_cases, kernels
from tests.results_scripts import load_script
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
    assert gpu.main(run) == 0
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
