"""Training fits the factor on a head's predicted scale, and every path uses it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from clipdepth_plugin import DepthHead
from clipdepth_plugin.decoders.readout import confidence_of
from clipdepth_plugin.errors import ConfigError
from clipdepth_plugin.evaluation.calibration import calibrate, take_pixels
from clipdepth_plugin.metric_calibration import MetricCalibration
from clipdepth_plugin.training.confidence_scale import (
    best_factor,
    calibration_errors,
    scale_shares,
)
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log
from tests.tiny.fused_heads import MEASURED

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

CONFIDENT: dict[str, Any] = {"loss": {"confidence": 0.1, "ssim": 0.0}, "augment": None}


def views(factor: float, seed: int, count: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log b as a head predicts it, prediction, truth, valid; errors are of ``factor`` times b."""
    g = torch.Generator().manual_seed(seed)
    shape = (count, 1, 25, 40)
    log_scale = torch.rand(shape, generator=g) * 3 - 4
    depth = 0.5 + 4 * torch.rand(shape, generator=g)
    share = torch.rand(shape, generator=g).clamp_min(1e-6)
    sign = torch.where(torch.rand(shape, generator=g) < 0.5, -1.0, 1.0)
    pred = depth * torch.exp(sign * factor * log_scale.exp() * -share.log())  # Laplace
    valid = torch.rand(shape, generator=g) < 0.7
    return log_scale, pred, depth * valid, valid


def error_of(log_scale: Tensor, pred: Tensor, depth: Tensor, valid: Tensor) -> float:
    """As the evaluation measures it."""
    maps = zip(confidence_of(log_scale), pred, depth, valid, strict=True)
    return calibrate([take_pixels(*one) for one in maps]).calibration_error


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0, 12.0])
def test_an_overconfident_scale_is_found_and_mended_on_other_data(factor: float) -> None:
    shares_S2E = torch.stack([scale_shares(*views(factor, seed)).mean(0) for seed in (0, 1)])
    found = best_factor(shares_S2E)
    assert found == pytest.approx(factor, rel=0.05)
    log_scale, *rest = views(factor, seed=2)
    before, after = (error_of(one, *rest) for one in (log_scale, log_scale + math.log(found)))
    assert after < 0.02
    assert before > 0.1 or factor == 1


def test_errors_are_those_of_the_evaluation() -> None:
    given = views(3.0, seed=4)
    shares_S2E = scale_shares(*given).mean(0, keepdim=True)
    for factor in (1.0, 2.0, 5.0):
        mine = calibration_errors(shares_S2E, factor).item()
        moved = given[0] + math.log(factor)
        assert mine == pytest.approx(error_of(moved, *given[1:]), abs=5e-3)


def test_each_set_weighs_the_same() -> None:
    """One set's errors are of b, the other's of 16 b, in a hundred times the pictures."""
    few, many = (scale_shares(*views(f, 0, n)).mean(0) for f, n in ((1.0, 2), (16.0, 200)))
    both = best_factor(torch.stack([few, many]))
    assert best_factor(few[None]) * 1.5 < both < best_factor(many[None]) / 1.5


def test_views_without_depth_and_nonsense_count_nothing() -> None:
    log_scale, pred, depth, valid = views(1.0, 0, 2)
    valid[0] = False
    pred[~valid], log_scale[~valid] = torch.nan, torch.nan
    shares_B2E = scale_shares(log_scale, pred, depth, valid)
    assert shares_B2E.sum((1, 2)).tolist() == pytest.approx([0.0, 1.0])


def test_the_saved_head_is_calibrated_on_validation_data(tiny: TinyRuns) -> None:
    """From a head far too sure; its depth stays as it is, and the switch leaves it alone."""
    options = {**tiny.exact_head, "confidence": True}
    first = train(tiny.config("first", head={"options": options}, steps=20, **CONFIDENT))
    head = DepthHead.from_pretrained(first.head)
    sure = tiny.folder / "sure"
    scale = head.config.confidence_scale / 20
    measured = MetricCalibration(scale=1.0, scale_error=0.1, **MEASURED)
    changes = {"confidence_scale": scale, "calibration": measured}
    head.config = head.config.model_copy(update=changes)
    head.save_pretrained(sure)
    still: dict[str, Any] = {"head": {"init": str(sure)}, "optimiser": {"lr": 1e-9}, "ema": None}
    saved, errors = {}, {}
    for name, switch in (("on", True), ("off", False)):
        run = tiny.config(name, **CONFIDENT, **still, steps=1, calibrate_confidence=switch)
        saved[name] = DepthHead.from_pretrained(train(run).head)
        (record,) = (one for one in read_log(Path(run.run) / "log.jsonl") if "abs_rel" in one)
        errors[name] = record["calibration_error"]
        assert saved[name].config.confidence_scale / scale == pytest.approx(
            record["confidence_scale"]
        )
    assert errors["on"] < 0.5 * errors["off"]
    assert saved["off"].config.confidence_scale == scale
    assert saved["off"].config.calibration == measured.trained_further()
    for name, x in saved["off"].state_dict().items():
        assert torch.equal(x, saved["on"].state_dict()[name])
    card = (tiny.folder / "on" / "head" / "README.md").read_text()
    assert "calibration_error 0." in card


def test_options_do_not_set_what_training_fits(tiny: TinyRuns) -> None:
    options = {**tiny.head, "confidence": True, "confidence_scale": 2.0}
    with pytest.raises(ConfigError, match=r"confidence_scale: is set by the run \(calibrate_conf"):
        tiny.config("run", head={"options": options}, **CONFIDENT)
