"""results/added_latency.py writes its files, and they agree with each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from clipdepth_plugin.adapters.loading.config import BUILT_IN
from clipdepth_plugin.latency.schema import Audit
from tests.results_scripts import ROOT, load_script


def test_both_files_are_written(
    make_host: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("added_latency")
    monkeypatch.setattr(script, "SIZES", (14,))
    tiny = {"vit-b-16": "hf_clip_vision", "llava-small": "llava"}
    for name, kind in tiny.items():
        monkeypatch.setitem(BUILT_IN, name, (f"tiny {name}", partial(make_host, kind)))
    script.main(["--rounds", "8", "--output", str(tmp_path), "--hosts", *tiny])
    audits = read(tmp_path)
    assert [audit.host.label for audit in audits] == [f"tiny {name}" for name in tiny]
    text = (tmp_path / "added_latency.md").read_text(encoding="utf-8")
    assert text == script.to_markdown(audits)
    assert "| tiny llava-small | the prefill, " in text
    assert "--rounds 8" in text


def test_the_committed_table_is_that_of_the_committed_json() -> None:
    folder = ROOT / "results"
    if not (folder / "added_latency.json").exists():
        pytest.skip("not measured yet")
    text = (folder / "added_latency.md").read_text(encoding="utf-8")
    assert text == load_script("added_latency").to_markdown(read(folder))


def read(folder: Path) -> list[Audit]:
    text = (folder / "added_latency.json").read_text(encoding="utf-8")
    return [Audit.model_validate(one) for one in json.loads(text)]
