"""evaluate(), the head as a predictor, and the files of a report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.cli.eval_table import make_table
from clipdepth_plugin.config import Preset
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.evaluation.evaluate import Baseline, evaluate, median_depth
from clipdepth_plugin.evaluation.metrics import METRICS
from clipdepth_plugin.evaluation.predictors import (
    HeadPredictor,
    predict_samples,
)
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.evaluation.report import (
    Report,
    choose_rows,
    make_report,
    write_image_grid,
    write_report,
)
from clipdepth_plugin.features import one_size
from clipdepth_plugin.training.losses import LossConfig
from clipdepth_plugin.training.trained import TrainedHead

RGBD = get_protocol("rgbd", depth_range=(1e-3, 10.0))
PREPROCESSING = Preprocessing(*HALF_NORMALISATION, size=(32, 32), resize="squash")


def sample(seed: int, size: tuple[int, int] = (24, 40)) -> Sample:
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(1, *size, generator=g) * 3 + 0.5
    depth[0, :, :5] = 0
    image = torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8)
    return Sample(image, depth, (30.0, 31.0, 20.0, 12.0), f"set/test/seq/{seed}")


class Truth:
    """Predicts the truth times a factor of each picture, and keeps what it was shown."""

    def __init__(self, samples: Sequence[Sample], factors: Sequence[float]) -> None:
        self.answers = {s.name: s.depth_1HW * f for s, f in zip(samples, factors, strict=True)}
        self.shown: list[Sample] = []

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        self.shown += samples
        return [self.answers[s.name] for s in samples]


class Stream:
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def test_figures_raw_and_aligned_beside_the_constant() -> None:
    samples = [sample(i) for i in range(4)]
    result = evaluate(Truth(samples, (1.1, 1.2, 0.5, 1.0)), samples, RGBD, batch_size=3)
    assert [row.metrics["none"]["abs_rel"] for row in result.rows] == pytest.approx(
        [0.1, 0.2, 0.5, 0.0], abs=1e-6
    )
    assert result.means["none"]["abs_rel"] == pytest.approx(0.2, abs=1e-6)
    for alignment in ("median", "lsq"):
        assert result.means[alignment]["abs_rel"] == pytest.approx(0.0, abs=1e-6)
        assert result.rows[2].fits[alignment].scale == pytest.approx(2.0, abs=1e-6)

    pooled = torch.cat([s.depth_1HW[s.depth_1HW > 0] for s in samples])
    assert result.baseline.kind == "test-median"
    assert result.baseline.depth == pytest.approx(float(pooled.median()), rel=0.02)
    truth = samples[1].depth_1HW[samples[1].depth_1HW > 0].double()
    raw = ((result.baseline.depth - truth).abs() / truth).mean()
    assert result.rows[1].baseline["none"]["abs_rel"] == pytest.approx(float(raw), abs=1e-6)
    aligned = ((np.median(truth) - truth).abs() / truth).mean()
    assert result.rows[1].baseline["median"]["abs_rel"] == pytest.approx(float(aligned), abs=1e-6)


def test_streams_empty_pictures_and_a_given_baseline() -> None:
    samples = [sample(i) for i in range(3)]
    samples[1] = replace(samples[1], depth_1HW=torch.zeros(1, 24, 40))
    done: list[int] = []
    predict = Truth(samples, (1, 1, 1))
    baseline = Baseline("train-median", 2.0)
    result = evaluate(predict, Stream(samples), RGBD, baseline=baseline, advance=done.append)
    assert result.skipped == ("set/test/seq/1",)
    assert [row.index for row in result.rows] == [0, 2]
    assert sum(done) == 3
    assert len(predict.shown) == 2
    assert (result.baseline.kind, result.baseline.depth) == ("train-median", 2.0)
    with pytest.raises(DataError, match="no picture of the data set has depth"):
        median_depth([samples[1]], RGBD)


def test_every_picture_weighs_the_same_in_the_median() -> None:
    near = replace(sample(0, (10, 10)), depth_1HW=torch.full((1, 10, 10), 1.0))
    far = replace(sample(1, (90, 90)), depth_1HW=torch.full((1, 90, 90), 9.0))
    assert median_depth([near, far, near], RGBD) == 1.0
    assert median_depth([near, far, far], RGBD) == 9.0


def test_predictions_are_clipped_to_the_range_and_zeros_have_a_logarithm() -> None:
    samples = [sample(0)]
    result = evaluate(Truth(samples, (0,)), samples, RGBD)
    assert math.isfinite(result.means["none"]["rmse_log"] or 0)
    assert result.means["none"]["abs_rel"] == pytest.approx(1.0, abs=0.01)
    far = evaluate(Truth(samples, (1e6,)), samples, get_protocol("rgbd", depth_range=(1e-3, 4.0)))
    assert (far.means["none"]["rmse"] or 0) < 4


def test_flip_is_the_mean_of_both() -> None:
    protocol = get_protocol("rgbd", flip=True)
    s = sample(0)

    def brightness(shown: Sequence[Sample]) -> list[Tensor]:
        ramp = torch.arange(40.0).expand(24, 40) / 40
        return [one.image_3HW[:1].float() + ramp for one in shown]

    (pred,) = predict_samples(brightness, [s], protocol)
    expected = s.image_3HW[0].float() + 39 / 80
    torch.testing.assert_close(pred.depth_HW, expected)


def test_kb_crop_shows_the_crop_and_puts_it_back() -> None:
    protocol = get_protocol("kitti-garg", kb_crop=True, flip=False)
    s = sample(0, (375, 1242))
    cut = s.depth_1HW[:, 23:375, 13:1229]
    seen: list[Sample] = []

    def predict(shown: Sequence[Sample]) -> list[Tensor]:
        seen.extend(shown)
        return [one.depth_1HW * 2 for one in shown]

    (pred,) = predict_samples(predict, [s], protocol)
    assert seen[0].image_3HW.shape == (3, 352, 1216)
    assert seen[0].intrinsics == (30.0, 31.0, 20.0 - 13, 12.0 - 23)
    torch.testing.assert_close(pred.depth_HW[23:375, 13:1229], cut[0] * 2)
    assert torch.isnan(pred.depth_HW[0, 0])
    assert evaluate(predict, [s], protocol).means["none"]["abs_rel"] == pytest.approx(1, abs=1e-6)


def test_bad_predictions_are_named() -> None:
    samples = [sample(0)]
    with pytest.raises(DataError, match="set/test/seq/0: the predicted depth is not finite"):
        evaluate(Truth(samples, (math.nan,)), samples, RGBD)
    with pytest.raises(DataError, match="must have one size"):
        evaluate(lambda shown: [torch.ones(1, 3, 3)] * len(shown), samples, RGBD)


def test_what_the_tower_was_not_shown_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    """As beside a centre crop: NaN there, in what counts and in what is compared with."""
    samples = [sample(0), sample(1)]
    samples[1].depth_1HW[..., 10:] = 0  # all that is valid lies beside the crop

    def cropped(shown: Sequence[Sample]) -> list[Tensor]:
        maps = [one.depth_1HW * 2 for one in shown]
        for map_1HW in maps:
            map_1HW[..., :10] = torch.nan
        return maps

    result = evaluate(cropped, samples, get_protocol("rgbd", flip=False))
    (row,) = result.rows
    valid_HW = RGBD.valid(samples[0].depth_1HW[0], "")
    assert row.pixels == int(valid_HW[:, 10:].sum()) < int(valid_HW.sum())
    assert result.means["none"]["abs_rel"] == pytest.approx(1, abs=1e-6)
    assert result.skipped == (samples[1].name,)
    assert "pixels with depth are not measured: the tower was not shown them" in caplog.text


def tiny_host(image_size: int = 32) -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=8,
    )
    host: CLIPVisionModel = CLIPVisionModel(config).eval()
    return host


def tiny_head(host: CLIPVisionModel, **options: Any) -> DepthHead:
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": (8, 8, 8, 8), "film_hidden": 8, "activation": "log"}
    return DepthHead.for_host(host, **{"preset": "spaceclip", **small, **options}).eval()


def test_a_head_is_evaluated_as_it_predicts() -> None:
    host = tiny_host()
    head = tiny_head(host)
    samples = [sample(0, (32, 32)), sample(1, (40, 24)), sample(2, (32, 32))]
    with attach(host, head, processor=PREPROCESSING) as plugin:
        maps = HeadPredictor(plugin, PREPROCESSING)(samples)
        assert [tuple(m.shape) for m in maps] == [(1, 32, 32), (1, 40, 24), (1, 32, 32)]
        picture = Image.fromarray(samples[0].image_3HW.permute(1, 2, 0).numpy())
        with torch.no_grad():
            expected = plugin(to_pixels([picture], PREPROCESSING))
        torch.testing.assert_close(maps[0], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["spaceclip", "guided"])
def test_maps_lie_where_the_plugin_puts_them_beside_an_unseen_border(preset: Preset) -> None:
    """An input of 36 pixels in patches of 8: the last 4 are in no patch."""
    host, seen = tiny_host(36), replace(PREPROCESSING, size=(36, 36))
    options = {"channels": (8, 8, 8), "stem_channels": 4} if preset == "guided" else {}
    head = tiny_head(host, preset=preset, confidence=True, **options)
    samples = [sample(0, (36, 36)), sample(1, (72, 48))]
    with attach(host, head) as plugin, torch.no_grad():
        maps = HeadPredictor(plugin, seen)(samples)
        pixels = to_pixels([one.picture for one in samples], seen)
        host(pixels)
        for size, one_2HW, row in (((36, 36), maps[0], 0), ((72, 48), maps[1], 1)):
            metres, sure = plugin.predict(size), plugin.predict_confidence(size)
            torch.testing.assert_close(one_2HW, torch.cat([metres[row], sure[row]]))
        features = one_size(plugin.features(pixels))
        trained = TrainedHead(head, LossConfig(), patch_size=(8, 8))
        fields = features.levels, features.context, features.pixels, features.grid, (36, 36)
        torch.testing.assert_close(trained([fields], (36, 36)).depth, plugin.depth)
        assert bool((plugin.depth[..., 32:] == plugin.depth[..., 31:32]).all())
        trained.train()
        estimate = trained([fields], (24, 20))
        assert {tuple(one.shape) for one in (*estimate.auxiliary, estimate.log_scale)} == {
            (2, 1, 24, 20)
        }


def test_a_confidence_is_evaluated_with_its_depth(tmp_path: Path) -> None:
    host = tiny_host()
    head = tiny_head(host, confidence=True, canonical_focal=50.0)
    samples = [sample(0, (32, 32)), sample(1, (40, 24))]
    with attach(host, head) as plugin:
        predict = HeadPredictor(plugin, PREPROCESSING)
        metres_and_confidence = predict(samples)[1]
        result = evaluate(predict, samples, get_protocol("rgbd", flip=True))
    assert metres_and_confidence.shape == (2, 40, 24)
    assert 0 < metres_and_confidence[1].min() < metres_and_confidence[1].max() < 1
    calibration = result.calibration
    assert calibration is not None
    # Random weights: every scale is near 0.095, which says 0.9; of 1000 pixels a picture at most.
    assert calibration.mean_confidence == pytest.approx(0.9, abs=0.05)
    assert calibration.pixels == 27 * 32 + 19 * 40
    assert calibration.calibration_error > 0.3
    environment: dict[str, Any] = {
        **dict.fromkeys(("device", "host", "head"), "x"),
        "command": (),
        "tower_hashes": {},
        "data": {},
        "align": "none",
    }
    report = make_report(result, **environment)
    write_report(tmp_path, report, result)
    read = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert read.calibration is not None
    assert read.calibration.curve == calibration.curve
    text = Console(record=True, width=150, file=io.StringIO())
    text.print(make_table(result))
    shown = " ".join(text.export_text().split())  # wrapped where the console ends
    assert f"expected calibration error {calibration.calibration_error:.4f}" in shown


def test_a_canonical_camera_is_taken_into_account(caplog: pytest.LogCaptureFixture) -> None:
    host = tiny_host()
    plain, scaled = (
        HeadPredictor(attach(tiny_host(), tiny_head(host, canonical_focal=focal)), PREPROCESSING)
        for focal in (None, 50.0)
    )
    samples = [sample(0), replace(sample(1), intrinsics=None)]
    expected, got = plain(samples), scaled(samples)
    factor = math.sqrt((30.0 * 32 / 40) * (31.0 * 32 / 24)) / 50.0
    torch.testing.assert_close(got[0], expected[0] * factor)
    torch.testing.assert_close(got[1], expected[1])
    assert "no camera given for views [1]: the metres are those of a focal length of 50 px" in (
        caplog.text
    )


def test_a_head_in_training_mode_is_refused() -> None:
    host = tiny_host()
    plugin = attach(host, tiny_head(host))
    plugin.head.train()
    with pytest.raises(HostError, match=r"call head.eval\(\)"):
        HeadPredictor(plugin, PREPROCESSING)


def test_report_files(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(7)]
    smooth = torch.linspace(1, 1.5, 40).expand(1, 24, 40)
    samples[0] = replace(samples[0], depth_1HW=smooth)
    predict = Truth(samples, [1 + 0.1 * i for i in range(7)])
    result = evaluate(predict, samples, RGBD)
    environment = {
        "command": ("clipdepth", "eval"),
        "device": "cpu",
        "host": "demo",
        "head": "head",
        "tower_hashes": {"float32": "x"},
        "data": {"format": "rgbd"},
        "align": "none",
    }
    report = make_report(result, **environment)
    write_report(tmp_path, report, result)
    read = Report.model_validate(json.loads((tmp_path / "report.json").read_text()))
    assert read == report
    assert read.means["none"]["abs_rel"] == pytest.approx(0.3, abs=1e-6)
    assert read.boundary_images == 6
    assert {"python", "torch", "clipdepth-plugin"} <= read.versions.keys()

    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [s.name for s in samples]
    assert float(rows[3]["abs_rel"]) == pytest.approx(0.3, abs=1e-6)
    assert rows[0]["boundary_abs_rel"] == ""

    text = io.StringIO()
    Console(file=text, width=120).print(make_table(result))
    for metric in METRICS:
        assert metric.label in text.getvalue()
    assert "test-median" in text.getvalue()

    chosen = [(kind, row.index) for kind, row in choose_rows(result, "none", 2)]
    kinds = ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert chosen == list(zip(kinds, (0, 1, 2, 3, 5, 6), strict=True))
    write_image_grid(tmp_path / "pictures.png", result, predict, Stream(samples), count=2)
    with Image.open(tmp_path / "pictures.png") as picture:
        assert picture.height > picture.width
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "images.csv",
        "pictures.png",
        "report.json",
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_grid_of_few_pictures_shows_each_once(count: int, tmp_path: Path) -> None:
    samples = [sample(i) for i in range(count)]
    predict = Truth(samples, [1.0] * count)
    result = evaluate(predict, samples, get_protocol("rgbd"))
    shown = [row.index for _, row in choose_rows(result, "none", 3)]
    assert sorted(shown) == list(range(count))
    write_image_grid(tmp_path / "pictures.png", result, predict, samples)


def test_no_bound_is_null_in_json() -> None:
    samples = [sample(0)]
    result = evaluate(Truth(samples, (1,)), samples, get_protocol("rgbd"))
    environment = dict.fromkeys(("device", "host", "head"), "x")
    empty = {"command": (), "tower_hashes": {}, "data": {}, "align": "none"}
    text = make_report(result, **environment, **empty).model_dump_json()
    assert json.loads(text)["protocol"]["high"] is None
