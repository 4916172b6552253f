"""audit() on a host and heads of known cost: figures, words, and a host left as it was.

Forward hooks of the test's own move a clock on; no test here waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.agreement import compare_audits
from clipdepth_plugin.latency.audit import Subject, audit
from clipdepth_plugin.latency.bases import make_pixels, prefill_base, tower_base
from clipdepth_plugin.latency.report import to_markdown
from clipdepth_plugin.latency.schema import Audit, load_audit
from tests.tiny.clock import Clock, holds

TOWER, LANGUAGE, HEAD, SEPARATE = 0.100, 0.400, 0.020, 0.300
MakeHead = Callable[..., DepthHead]
MakeHost = Callable[[str], nn.Module]


@dataclass
class Setting:
    """A LLaVA whose tower, language model and head have known costs."""

    clock: Clock
    model: nn.Module
    head: DepthHead
    subject: Subject

    def audit(self) -> Audit:
        return audit(
            self.subject,
            {"small": self.head},
            describe_circumstances(["clipdepth", "bench"]),
            separate={"second network": lambda: self.clock.spend(SEPARATE)},
            method=self.clock.method,
        )


def make_setting(make_host: MakeHost, make_head: MakeHead, noise: float = 0.002) -> Setting:
    model, ticking = make_host("llava"), Clock(noise=noise)
    head = make_head(model)
    tower = choose_tower(model)
    pixels_B3HW = make_pixels(tower, 2)
    bases = [tower_base(tower, pixels_B3HW), prefill_base(model, pixels_B3HW, 4)]
    ticking.charge(tower.module, lambda _: TOWER)
    ticking.charge(model.get_submodule("model.language_model.layers.0"), lambda _: LANGUAGE)
    ticking.charge(head, lambda _: HEAD)
    return Setting(
        ticking, model, head, Subject("here", "a LLaVA", model, tower, pixels_B3HW, bases)
    )


@pytest.fixture
def setting(make_host: MakeHost, make_head: MakeHead) -> Setting:
    return make_setting(make_host, make_head)


def test_every_figure_covers_its_truth_and_says_of_what_it_is(setting: Setting) -> None:
    report = setting.audit()
    prefill = TOWER + LANGUAGE
    ratios = {
        "tower + small, eager": ("tower", HEAD / TOWER),
        "prefill + small, eager": ("prefill", HEAD / prefill),
    }
    for name, (scope, ratio) in ratios.items():
        figure = report.figure(name)
        (added,) = figure.added
        assert (figure.scope, figure.what, added.base) == (scope, "depth", scope)
        assert added.told
        assert holds(added.percent, 100 * ratio)
    for name, cost in (("head alone: small, eager", HEAD), ("second network", SEPARATE)):
        shares = {one.base: one.percent for one in report.figure(name).added}
        assert holds(shares["tower"], 100 * cost / TOWER)
        assert holds(shares["prefill"], 100 * cost / prefill)
    for scope in ("tower", "prefill"):
        assert not report.figure(f"{scope} + taps for small").added[0].told
        assert holds(report.noise_percent[scope], 0.0)
    assert report.host.prompt_tokens == 16 + 4
    assert len(report.figure("tower alone").seconds) == 24


def test_the_verdict_in_plain_words(setting: Setting) -> None:
    report = setting.audit()
    others = "" if report.others_percent is None else report.verdict[1]
    noise, taps, depth, separate = (line for line in report.verdict if line != others)
    assert noise.startswith("Noise: timed twice in each round, a host differs from itself:")
    assert "Tapping alone, for small, adds to the tower less than the noise shows (at most" in taps
    share = r"[\d.]+% \[[\d.]+, [\d.]+\]"
    words = rf"Depth by small \(eager\) adds {share} to the tower, {share} to the prefill\."
    assert re.fullmatch(words, depth)
    assert "times [" in separate
    assert "what depth by small (eager) adds to the tower" in separate


def test_noise_above_the_effect_is_said_in_place_of_a_number(
    make_host: MakeHost, make_head: MakeHead
) -> None:
    report = make_setting(make_host, make_head, noise=0.3).audit()
    assert not report.figure("prefill + small, eager").added[0].told
    assert "to the prefill less than the noise shows (at most" in " ".join(report.verdict)
    assert "| prefill | prefill + small, eager |" in to_markdown(report)
    (row,) = (line for line in to_markdown(report).splitlines() if "| prefill + small" in line)
    assert "| - | lost in noise (at most" in row


def test_the_host_is_left_as_it_was(setting: Setting) -> None:
    model, pixels_B3HW = setting.model, setting.subject.pixels_B3HW

    def output() -> Tensor:
        found: Tensor = setting.subject.tower.module(pixels_B3HW).last_hidden_state
        return found

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    before, hooked = output(), hooks()
    setting.audit()
    assert torch.equal(output(), before)
    assert hooks() == hooked


def test_switching_hooks_keeps_what_is_compiled(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only attaching resets dynamo; else a compiled head would compile anew in timed calls."""
    import torch._dynamo

    resets: list[float] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(setting.clock.now))
    before = setting.clock.now
    setting.audit()
    assert resets
    assert all(when == before for when in resets)


def test_operations_parameters_and_memory(setting: Setting) -> None:
    report = setting.audit()
    alone, depth = report.figure("tower alone"), report.figure("tower + small, eager")
    head = report.figure("head alone: small, eager")
    assert alone.gflops is not None
    assert head.gflops is not None
    assert depth.gflops == pytest.approx(alone.gflops + head.gflops)
    assert report.figure("tower again").gflops is None
    assert report.heads["small"].parameters == sum(p.numel() for p in setting.head.parameters())
    assert report.host.parameters == sum(p.numel() for p in setting.model.parameters())
    assert 0 < report.host.tower_parameters < report.host.parameters


def test_the_report_survives_its_file(setting: Setting, tmp_path: Any) -> None:
    report = setting.audit()
    path = tmp_path / "a.json"
    path.write_text(report.model_dump_json(), encoding="utf-8")
    assert load_audit(path) == report
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(BenchError, match="not a report of clipdepth bench"):
        load_audit(path)
    with pytest.raises(BenchError, match="can't be read"):
        load_audit(tmp_path / "missing.json")


def test_two_runs_of_one_host_agree_and_a_slower_head_does_not(
    make_host: MakeHost, make_head: MakeHead
) -> None:
    reports = []
    for seed in range(2):
        setting = make_setting(make_host, make_head)
        setting.clock.draws = np.random.default_rng(seed)
        reports.append(setting.audit())
    pairs = compare_audits(*reports)
    assert {(pair.name, pair.base) for pair in pairs} >= {
        ("tower + small, eager", "tower"),
        ("prefill + small, eager", "prefill"),
        ("second network", "prefill"),
    }
    assert all(pair.agrees for pair in pairs)
    setting.clock.charge(setting.head, lambda _: HEAD)
    slower = compare_audits(reports[0], setting.audit())
    assert {pair.name for pair in slower if not pair.agrees} == {
        "tower + small, eager",
        "prefill + small, eager",
        "head alone: small, eager",
    }
    other = reports[1].settings.model_copy(update={"batch": 5})
    with pytest.raises(BenchError, match="different batches can't agree: 2 and 5"):
        compare_audits(reports[0], reports[1].model_copy(update={"settings": other}))
