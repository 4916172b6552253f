"""A calibrated head gives the calibrated metres everywhere, from points read on a tiny host.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.calibrating.calibrate import Calibrated, calibrate
from clipdepth_plugin.calibrating.readings import Readings, read_points, uncalibrated
from clipdepth_plugin.data import Sample
from clipdepth_plugin.data.points import PointsFile
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.errors import ConfigError, DataError, HeadMismatchError
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.features import one_size
from clipdepth_plugin.metric_calibration import MetricCalibration, interval
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from tests.tiny.command_line import save_pictures
from tests.tiny.fused_heads import MEASURED

SQUASH = Preprocessing(*HALF_NORMALISATION, size=(32, 32), resize="squash")
CROP = Preprocessing(*HALF_NORMALISATION, size=(32, 32), resize="shortest")
PRESETS: dict[str, dict[str, Any]] = {
    "spaceclip": {"channels": (8, 8, 8, 8), "activation": "log"},
    "fast": {"channels": (8, 8, 8)},
    "guided": {"channels": (8, 8, 8), "stem_channels": 4},
}

LAST = {"spaceclip": ("readout.to_depth", 5.0)}


def tiny_host() -> CLIPVisionModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=4, image_size=32, patch_size=8)
    host: CLIPVisionModel = CLIPVisionModel(config).eval()
    return host


def varied_head(host: nn.Module, preset: str = "fast", **options: Any) -> DepthHead:
    """A head whose depths differ by more than random weights give."""
    torch.manual_seed(0)
    small = {"film_hidden": 8, **PRESETS[preset], **options}
    head = DepthHead.for_host(host, preset, **small).eval()
    last, std = LAST.get(preset, ("to_logit", 1.0))
    nn.init.normal_(head.get_parameter(f"decoder.{last}.weight"), std=std)
    return head


def read(
    host: nn.Module, head: DepthHead, data: Any, processor: Preprocessing = SQUASH
) -> Readings:
    return read_points(DepthPlugin(host, uncalibrated(head), processor=processor), data)


def distorted(
    host: nn.Module, head: DepthHead, distort: Callable[[torch.Tensor], torch.Tensor]
) -> list[Sample]:
    """Pictures of several lenses, whose truth is the head's depth: distorted, 2% noise."""
    g = torch.Generator().manual_seed(0)
    samples = []
    for number in range(6):
        size, focal = ((12, 20), (18, 15))[number % 2], (10.0, 30.0, 45.0)[number % 3]
        image = torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8)
        camera = (focal, focal * 1.1, size[1] / 2, size[0] / 2)
        samples.append(Sample(image, torch.ones(1, *size), camera, f"set/{number}/frame"))
    predict = HeadPredictor(DepthPlugin(host, uncalibrated(head), processor=SQUASH))
    truths = []
    for sample in samples:
        one_HW = predict([sample])[0][0]
        factor = 1.0
        if head.config.canonical_focal is not None:
            height, width = one_HW.shape
            fx, fy = sample.intrinsics[0], sample.intrinsics[1]  # type: ignore[index]
            factor = math.sqrt(fx * 32 / width * fy * 32 / height) / head.config.canonical_focal
        noise_HW = torch.exp(0.02 * torch.randn(one_HW.shape, generator=g))
        truths.append(distort(one_HW / factor) * factor * noise_HW)
    return [
        Sample(one.image_3HW, truth_HW[None], one.intrinsics, one.name)
        for one, truth_HW in zip(samples, truths, strict=True)
    ]


@pytest.mark.parametrize(
    ("preset", "focal"), [("spaceclip", 35.0), ("fast", None), ("guided", 35.0)]
)
def test_calibrated_metres_everywhere(preset: str, focal: float | None, tmp_path: Path) -> None:
    """In the canonical camera's metres: the truth of other lenses follows."""
    host = tiny_host()
    head = varied_head(host, preset, canonical_focal=focal, confidence=True)
    samples = distorted(host, head, lambda metres_HW: 1.7 * metres_HW**0.8)
    result = calibrate(
        head, read(host, head, samples), data="set", slope="always", confidence="never"
    )
    _check_found(result)
    assert result.before.abs_rel > 0.1
    assert result.after is not None
    assert result.after.abs_rel < 0.05
    assert head.config.calibration is None
    result.head.save_pretrained(tmp_path)
    assert "set: " in (tmp_path / "README.md").read_text()
    pixels = torch.randn(2, 3, 32, 32)
    with attach(host, head, processor=SQUASH) as plugin, torch.no_grad():
        features = one_size(plugin.features(pixels))
        raw = head.estimate(features, auxiliary=True)
    record = result.record

    def metres(given: torch.Tensor) -> torch.Tensor:
        return record.scale * record.pivot * (given / record.pivot) ** record.slope

    expected = metres(raw.depth)
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    resized = resize(expected, (20, 28))
    for one in (result.head, DepthHead.from_pretrained(tmp_path), result.head.fused()):
        with attach(host, one, processor=SQUASH) as plugin, torch.no_grad():
            host(pixels)
            torch.testing.assert_close(plugin.predict((64, 64)), expected, **near)
            torch.testing.assert_close(one(features), expected, **near)
            torch.testing.assert_close(one(features, (20, 28)), resized, **near)
    with torch.no_grad():
        auxiliary = result.head.forward_with_aux(features)[1]
    for mine, given in zip(auxiliary, raw.auxiliary, strict=True):
        torch.testing.assert_close(mine, metres(given))
    predict = HeadPredictor(DepthPlugin(host, result.head, processor=SQUASH))
    for sample in samples:
        error_HW = predict([sample])[0][0] / sample.depth_1HW[0] - 1
        assert float(error_HW.abs().mean()) < 0.05


def _check_found(result: Calibrated) -> None:
    record = result.record
    assert result.no_slope is None
    reach = interval(record.slope_error, record.groups)
    assert reach is not None
    assert abs(record.slope - 0.8) <= reach < 0.1
    reach = interval(record.scale_error, record.groups)
    assert reach is not None
    assert abs(math.log(record.scale / 1.7) + 0.2 * math.log(record.pivot)) <= reach < 0.1


def test_a_calibrated_head_is_fitted_anew() -> None:
    """Whatever it was calibrated to, the fit is that of its decoder; before is as it was."""
    host = tiny_host()
    head = varied_head(host, confidence=True)
    samples = distorted(host, head, lambda metres_HW: 2 * metres_HW)
    first = calibrate(head, read(host, head, samples))
    again = calibrate(first.head, read(host, first.head, samples))
    assert again.record.scale == first.record.scale
    assert again.record.slope == 1
    assert again.before.abs_rel < 0.05 < first.before.abs_rel
    with pytest.raises(HeadMismatchError, match=r"uncalibrated\(head\)"):
        read_points(DepthPlugin(host, first.head, processor=SQUASH), samples)


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        ({}, {"metric": False}, HeadMismatchError, "depth is relative"),
        ({"canonical_focal": 35.0}, {}, DataError, "a.png: its focal length is not known"),
        ({}, {"resize": "host"}, DataError, "1 points lie where.*\n  line 2: a.png"),
    ],
    ids=str,
)
def test_what_can_not_be_calibrated(
    options: dict[str, Any],
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    host = tiny_host()
    head = varied_head(host, **options)
    head.config = head.config.model_copy(update=change)
    save_pictures(tmp_path / "set", {"a.png": (32, 96)})
    points = tmp_path / "set" / "points.csv"
    points.write_text("picture,x,y,metres\na.png,2,3,1.5\na.png,48,3,1.5\n")
    with pytest.raises(error, match=message):
        read(host, head, PointsFile(points), CROP)


def test_sets_without_a_point_are_refused() -> None:
    host = tiny_host()
    empty = Sample(torch.zeros(3, 9, 9, dtype=torch.uint8), torch.zeros(1, 9, 9), None, "set/a")
    for data in ([], [empty]):
        with pytest.raises(DataError, match="no picture has a measured depth"):
            read(host, varied_head(host), data)


def test_pictures_and_pixels_that_can_not_be_used_are_counted() -> None:
    host = tiny_host()
    head = varied_head(host)
    samples = distorted(host, head, lambda metres_HW: metres_HW)
    one_colour = Sample(
        torch.full((3, 9, 9), 40, dtype=torch.uint8), torch.ones(1, 9, 9), None, "set/a"
    )
    readings = read(host, head, [*samples, one_colour])
    assert readings.skipped == ("set/a",)
    assert readings.unseen == 81
    assert len(readings.names) == len(samples)


def test_a_new_head_is_not_made_calibrated() -> None:
    from clipdepth_plugin.training.settings import HeadSettings

    with pytest.raises((ConfigError, ValueError), match="clipdepth calibrate, afterwards"):
        HeadSettings(options={"calibration": {"scale": 2.0, **MEASURED}})


def test_further_training_leaves_no_error_bars() -> None:
    fitted = MetricCalibration(scale=2.0, slope=0.9, pivot=1.5, scale_error=0.1, **MEASURED)
    further = fitted.trained_further()
    assert further.metres(3.0) == fitted.metres(3.0)
    assert further.scale_error is None
    assert "no error bar" in further.said
