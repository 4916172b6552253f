"""audit() on a host and heads of known cost: figures, sentences, and an unchanged host.

Forward hooks of the test advance a clock; no test here waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.report import to_markdown
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.subject import Subject, make_subject
from tests.tiny.clock import Clock

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
            separate={"second network": lambda: self.clock.spend(SEPARATE)},
            method=self.clock.method,
        )


def make_setting(make_host: MakeHost, make_head: MakeHead, noise: float = 0.002) -> Setting:
    model, ticking = make_host("llava"), Clock(noise=noise)
    head, subject = make_head(model), make_subject(model, batch=2, text_tokens=4)
    ticking.charge(subject.tower.module, lambda _: TOWER)
    ticking.charge(model.get_submodule("model.language_model.layers.0"), lambda _: LANGUAGE)
    ticking.charge(head, lambda _: HEAD)
    return Setting(ticking, model, head, subject)


@pytest.fixture
def setting(make_host: MakeHost, make_head: MakeHead) -> Setting:
    return make_setting(make_host, make_head)


def test_every_interval_covers_the_true_cost(setting: Setting) -> None:
    report = setting.audit()
    prefill = TOWER + LANGUAGE
    ratios = {
        "tower + small, eager": ("tower", HEAD / TOWER),
        "prefill + small, eager": ("prefill", HEAD / prefill),
    }
    for name, (scope, ratio) in ratios.items():
        figure = report.figure(name)
        (added,) = figure.added
        assert (figure.scope, figure.what, added.baseline) == (scope, "depth", scope)
        assert added.significant
        assert added.percent.contains(100 * ratio)
    for name, cost in (("head alone: small, eager", HEAD), ("second network", SEPARATE)):
        shares = {one.baseline: one.percent for one in report.figure(name).added}
        assert shares["tower"].contains(100 * cost / TOWER)
        assert shares["prefill"].contains(100 * cost / prefill)
    for scope in ("tower", "prefill"):
        assert not report.figure(f"{scope} + taps for small").added[0].significant
        assert report.noise_percent[scope].contains(0.0)
    assert report.host.prompt_tokens == 16 + 4
    assert len(report.figure("tower alone").seconds) == 24


def test_the_verdict(setting: Setting) -> None:
    noise, taps, depth, separate = setting.audit().verdict
    share = r"[\d.]+% \[[\d.]+, [\d.]+\]"
    assert noise.startswith("Noise floor, from timing the host twice in each round: ")
    assert "Added by the taps alone, for small: below noise (at most" in taps
    expected = rf"Added by depth from small, eager: {share} of the tower, {share} of the prefill\."
    assert re.fullmatch(expected, depth)
    expected = rf"A separate second network takes {share} of the tower, {share} of the prefill\."
    assert re.fullmatch(expected, separate)


def test_an_effect_below_the_noise_floor_is_reported_as_such(
    make_host: MakeHost, make_head: MakeHead
) -> None:
    report = make_setting(make_host, make_head, noise=0.3).audit()
    assert not report.figure("prefill + small, eager").added[0].significant
    assert "below noise (at most" in report.verdict[2].partition("of the tower")[2]
    (row,) = (line for line in to_markdown(report).splitlines() if "| prefill + small" in line)
    assert "|  | below noise (at most" in row


def test_too_few_rounds_are_refused_before_anything_runs(setting: Setting) -> None:
    before = setting.clock.now
    with pytest.raises(BenchError, match="7 rounds"):
        audit(setting.subject, {"small": setting.head}, method=Method(rounds=7))
    assert setting.clock.now == before


def test_the_host_is_unchanged(setting: Setting) -> None:
    model, pixels_B3HW = setting.model, setting.subject.inputs.pixels

    def output() -> Tensor:
        found: Tensor = setting.subject.tower.module(pixels_B3HW).last_hidden_state
        return found

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    before, hooked = output(), hooks()
    setting.audit()
    assert torch.equal(output(), before)
    assert hooks() == hooked


def test_switching_hooks_keeps_compiled_code(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only attaching resets dynamo: otherwise timed calls would compile a compiled head anew."""
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


def test_the_report_survives_its_json(setting: Setting) -> None:
    report = setting.audit()
    assert Audit.model_validate_json(report.model_dump_json()) == report
