"""Sweeps over hosts and heads of known cost: exponents, what is refused, what others took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency import audit as audit_module
from clipdepth_plugin.latency.report import sweep_markdown
from clipdepth_plugin.latency.schema import Sweep
from clipdepth_plugin.latency.sweep import LEVELS_HEAD, parse_sweep, run_sweep
from tests.tiny.clock import Clock, holds

TOWER, HEAD = 0.100, 0.020
MakeHead = Callable[..., DepthHead]
MakeHost = Callable[[str], nn.Module]


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
