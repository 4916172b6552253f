"""audit() on a host and heads of known cost: figures, words, and a host left as it was.

Forward hooks of the test's own move a clock on; no test here waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.circumstances import describe_circumstances
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency import audit as audit_module
from clipdepth_plugin.latency.agreement import compare_audits
from clipdepth_plugin.latency.audit import Method, Subject, audit
from clipdepth_plugin.latency.bases import make_pixels, prefill_base, tower_base
from clipdepth_plugin.latency.report import sweep_markdown, to_markdown
from clipdepth_plugin.latency.schema import Audit, Range, Sweep, load_audit
from clipdepth_plugin.latency.sweep import LEVELS_HEAD, parse_sweep, run_sweep
from clipdepth_plugin.latency.timers import WallTimer

TOWER, LANGUAGE, HEAD, SEPARATE = 0.100, 0.400, 0.020, 0.300
MakeHead = Callable[..., DepthHead]
MakeHost = Callable[[str], nn.Module]


@dataclass
class Clock:
    """Moved on by what runs; drifts, and is uneven by ``noise``."""

    noise: float = 0.002
    drift: float = 0.01
    now: float = 0.0
    draws: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def spend(self, cost: float) -> None:
        uneven = 1 + self.noise * self.draws.standard_normal()
        self.now += cost * uneven * (1 + self.drift * self.now)

    def charge(self, module: nn.Module, cost: Callable[[Any], float]) -> None:
        """Lets every forward of ``module`` cost time, by its first argument or its pixels."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.spend(cost(args[0] if args else kwargs["pixel_values"]))

        module.register_forward_pre_hook(hook, with_kwargs=True)

    @property
    def method(self) -> Method:
        return Method(rounds=24, warmup=0, timer=WallTimer(now=lambda: self.now))


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


def holds(found: Range, truth: float) -> bool:
    return found.low <= truth <= found.high


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


def test_exponents_of_known_costs(make_host: MakeHost, make_head: MakeHead) -> None:
    """The tower's time grows with the batch, the head's with its square root."""
    model, clock = make_host("hf_clip_vision"), Clock()
    head, tower = make_head(model), choose_tower(model)
    clock.charge(tower.module, lambda pixels: TOWER * len(pixels))
    clock.charge(head, lambda features: HEAD * features.batch**0.5)
    sweep = run_sweep(model, tower, {"small": head}, "batch", (1, 2, 4), method=clock.method)
    slopes = {one.of: one.exponent for one in sweep.exponents}
    assert holds(slopes["tower"], 1.0)
    assert holds(slopes["small"], 0.5)
    assert slopes["small"].high - slopes["small"].low < 0.3
    rates = [point.images_per_second for point in sweep.points]
    assert rates == pytest.approx([rates[0]] * 3, rel=0.1)
    assert all(p.images_per_second_with["small"] < p.images_per_second for p in sweep.points)


def test_a_cost_within_noise_has_no_exponent(make_host: MakeHost, make_head: MakeHead) -> None:
    model, clock = make_host("hf_clip_vision"), Clock()
    tower = choose_tower(model)
    clock.charge(tower.module, lambda pixels: TOWER)
    heads = {"free": make_head(model)}
    sweep = run_sweep(model, tower, heads, "pixels", (32, 64), method=clock.method)
    assert [one.of for one in sweep.exponents] == ["tower"]
    assert sweep.exponents_not_fitted == {"free": "what it adds is lost in noise at 32, 64"}
    assert not any(point.added_told["free"] for point in sweep.points)


def test_a_head_that_saves_time_has_no_exponent(make_host: MakeHost, make_head: MakeHead) -> None:
    """Told from noise and negative: no logarithm, and no reason to lose the sweep."""
    model, clock = make_host("hf_clip_vision"), Clock()
    head, tower = make_head(model), choose_tower(model)
    clock.charge(tower.module, lambda pixels: TOWER)
    clock.charge(head, lambda features: -HEAD)
    sweep = run_sweep(model, tower, {"quick": head}, "batch", (1, 2), method=clock.method)
    assert all(point.added_told["quick"] for point in sweep.points)
    assert sweep.exponents_not_fitted == {"quick": "what it adds is not above zero at 1, 2"}
    (line,) = [line for line in sweep_markdown(sweep, 1) if "Exponents" in line]
    assert "No exponent of quick: what it adds is not above zero at 1, 2." in line


def test_a_sweep_says_what_others_took_meanwhile(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clock = make_host("hf_clip_vision"), Clock()
    tower = choose_tower(model)
    clock.charge(tower.module, lambda pixels: TOWER)
    monkeypatch.setattr(audit_module, "with_other_work", lambda call: (call(), 30.0))
    sweep = run_sweep(model, tower, {}, "batch", (1, 2), method=clock.method)
    assert sweep.others_percent == 30.0
    said = "Others took 30.0% of the processors' time meanwhile, 1.2 of 4: NOT an idle machine"
    assert said in sweep_markdown(sweep, 4)[-1]
    quiet = sweep.model_copy(update={"others_percent": 0.1})
    assert "meanwhile." in sweep_markdown(quiet, 4)[-1]
    older = {k: v for k, v in sweep.model_dump().items() if k != "others_percent"}
    assert "Others" not in sweep_markdown(Sweep.model_validate(older), 4)[-1]


def test_a_sweep_over_levels_makes_its_own_heads(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clock = make_host("hf_clip_vision"), Clock()
    tower = choose_tower(model)
    clock.charge(tower.module, lambda pixels: TOWER)
    made = DepthHead.__init__

    def charged(head: DepthHead, config: Any) -> None:
        made(head, config)
        clock.charge(head, lambda features: HEAD * len(head.config.levels))

    monkeypatch.setattr(DepthHead, "__init__", charged)
    sweep = run_sweep(model, tower, {}, "levels", (1, 2, 4), method=clock.method)
    (slope,) = sweep.exponents
    assert slope.of == LEVELS_HEAD
    assert holds(slope.exponent, 1.0)
    with pytest.raises(BenchError, match="has 4 blocks"):
        run_sweep(model, tower, {}, "levels", (1, 5), method=clock.method)


@pytest.mark.parametrize("text", ["batch", "batch=1", "batch=1,1", "depth=1,2", "pixels=0,32"])
def test_a_sweep_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="say batch=1,2,4 or"):
        parse_sweep(text)


def test_a_sweep_is_read() -> None:
    assert parse_sweep("pixels=448, 224") == ("pixels", (224, 448))
