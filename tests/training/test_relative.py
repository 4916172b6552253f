"""Relative depth: sets, the loss of such heads, runs, and what a head that says so gives."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from clipdepth_plugin import DepthHead, HeadConfig, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.data import DataConfig, open_dataset, open_mixture
from clipdepth_plugin.data.formats.rgbd import RgbdFolder
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import ClipDepthError, ConfigError, DataError, HeadMismatchError
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.metrics import alignment_fit
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.files.pictures import opened_image
from clipdepth_plugin.maps.alignment import inverse_of, least_squares, normalised
from clipdepth_plugin.training.config_file import load_config
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.losses import DepthLoss, LossConfig
from clipdepth_plugin.training.run_folder import read_log
from clipdepth_plugin.training.terms.ssi import aligned_error, picture_moments
from clipdepth_plugin.training.terms.term import Truth, mean_from_moments
from clipdepth_plugin.training.validation import aligned_inverse, relative_errors
from clipdepth_plugin.weights.model_card import model_card_text
from tests.tiny.command_line import run, words
from tests.training.labelled import TEACHER, copied, relative, weighed
from tests.training.test_cache import FLIP_ONLY, cache_of

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

SSI = LossConfig(silog=0, ssim=0, auxiliary=(), ssi=1, ssi_gradient=0.5)


def maps(seed: int = 0, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Relative depth, true inverse depth and where it is valid."""
    g = torch.Generator().manual_seed(seed)
    inverse = torch.rand(n, 1, 8, 9, generator=g, dtype=torch.float64) + 0.2
    noise = 0.2 * torch.randn(inverse.shape, generator=g, dtype=torch.float64)
    valid = torch.rand(inverse.shape, generator=g) < 0.8
    return (inverse * noise.exp()).reciprocal(), inverse * valid, valid


def numpy_ssi(pred: Tensor, inverse: Tensor, valid: Tensor) -> float:
    """MiDaS, equations 5 to 7 with its trimming and factor left out, picture by picture."""
    means = []
    for p, q, v in zip(pred, inverse, valid, strict=True):
        both = []
        for x in (1 / p[v].numpy(), q[v].numpy()):
            from_median = x - np.sort(x)[(len(x) - 1) // 2]
            both.append(from_median / np.abs(from_median).mean())
        means.append(np.abs(both[0] - both[1]).mean())
    return float(np.mean(means))


def test_the_loss_is_midas_and_blind_to_scale_and_shift() -> None:
    pred, inverse, valid = maps()
    loss = DepthLoss(SSI)(DepthEstimate(pred), inverse, valid)
    assert loss.terms["ssi"].item() == pytest.approx(numpy_ssi(pred, inverse, valid), rel=1e-6)
    scale = torch.tensor([3.0, 0.2, 1.0]).view(3, 1, 1, 1)
    shift = torch.tensor([0.0, 4.0, 0.3]).view(3, 1, 1, 1)
    moved = (1 / pred * scale + shift).reciprocal(), (inverse * scale.flip(0) + shift) * valid
    for some in (DepthLoss(SSI)(DepthEstimate(moved[0]), moved[1], valid),):
        assert some.total.item() == pytest.approx(loss.total.item(), rel=1e-5)
    perfect = DepthLoss(SSI)(DepthEstimate((inverse * 2 + 1).reciprocal()), inverse, valid)
    assert perfect.total.item() < 1e-6


def test_alignments_against_numpy() -> None:
    pred, inverse, valid = maps()
    x, y, w = (1 / pred).flatten(1), inverse.flatten(1), valid.flatten(1).double()
    scale, shift = least_squares(x, y, w)
    for i in range(3):
        v = valid[i].flatten()
        expected = np.polyfit(x[i][v].numpy(), y[i][v].numpy(), 1)
        assert [scale[i].item(), shift[i].item()] == pytest.approx(list(expected), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-8, 1e6], ids=str)
def test_degenerate_pictures_align_without_nan(value: float) -> None:
    constant = torch.full((1, 6), value, dtype=torch.float64)
    truth = torch.arange(6.0, dtype=torch.float64)[None] + 1
    for weight in (torch.ones(1, 6), torch.zeros(1, 6), torch.eye(6)[:1]):
        scale, shift = least_squares(constant, truth, weight.double())
        assert scale.item() == 0
        assert torch.isfinite(shift).all()
        found, varies = normalised(constant, weight.double())
        assert not varies.any()
        assert not found.any()


def test_pictures_without_relief_teach_nothing_and_the_others_all() -> None:
    pred, inverse, valid = maps()
    inverse[1] = 0.5
    error, truth = aligned_error(pred, Truth(inverse, valid | (inverse == 0.5)))
    assert not error[1].any()
    some = Truth(inverse[[0, 2]], valid[[0, 2]])
    expected = picture_moments(*aligned_error(pred[[0, 2]], some))
    torch.testing.assert_close(picture_moments(error, truth), expected)
    assert mean_from_moments(expected).item() > 0


def test_the_error_of_validation_is_blind_to_the_truths_scale_and_shift() -> None:
    pred, inverse, valid = maps()

    def error(p: Tensor, q: Tensor) -> Tensor:
        return relative_errors(aligned_inverse(p, q, valid), q, valid)

    plain = error(pred, inverse)
    torch.testing.assert_close(error((2 / pred + 1).reciprocal(), inverse * 7 + 3), plain)
    assert error((inverse + 0.1).reciprocal(), inverse).max() < 1e-6
    constant = error(torch.ones_like(pred), inverse)
    assert (constant >= 1).all()
    assert (constant < 1.3).all()
    none = torch.zeros_like(valid)
    assert relative_errors(aligned_inverse(pred, inverse, none), inverse, none).isnan().all()


# --- sets ------------------------------------------------------------------------------------


def test_a_relative_set_is_read_as_inverse_depth(tiny_data: str, tmp_path: Path) -> None:
    config = DataConfig(format="rgbd", root=str(relative(tiny_data, tmp_path / "r")), limit=2)
    data = open_dataset(config, relative=True)
    assert data.labels == "hf:org/teacher (licence cc-by-nc-4.0)"
    assert data.units == "inverse depth"  # type: ignore[union-attr]
    sample = next(iter(data))
    before = next(iter(open_dataset(DataConfig(format="rgbd", root=tiny_data))))
    assert sample.units == "inverse depth"
    assert torch.equal(sample.depth_1HW > 0, before.depth_1HW > 0)
    assert float(sample.depth_1HW.max()) <= 1
    x, y = sample.depth_1HW.flatten(), before.depth_1HW.flatten()
    assert np.corrcoef(x[y > 0], 1 / y[y > 0])[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("meta", "options", "message"),
    [
        ({"units": "centimetres"}, {}, r"meta.json: units"),
        ({"units": ["metres"]}, {}, r"meta.json: units"),
        ({"units": "inverse depth"}, {}, r"meta.json.*depth_scale: is of metres"),
        ({"units": "inverse depth", "depth_scale": None}, {}, "max_depth_m: is of metres"),
        ({"depth_scale": None}, {}, "depth_scale: is missing"),
        ({"labels": "yes"}, {}, "labels"),
        ({"labels": {"licence": "mit"}}, {}, r"labels.*source"),
    ],
)
def test_wrong_meta(
    meta: dict[str, Any], options: dict[str, Any], message: str, tiny_data: str, tmp_path: Path
) -> None:
    root = copied(tiny_data, tmp_path / "r", meta)
    with pytest.raises(DataError, match=message):
        open_dataset(DataConfig(format="rgbd", root=str(root), **options), relative=True)


@pytest.mark.parametrize("field", ["depth_scale", "min_depth", "max_depth"])
def test_a_relative_set_has_no_metres(field: str, tiny_data: str, tmp_path: Path) -> None:
    root = str(relative(tiny_data, tmp_path / "r"))
    config = DataConfig.model_validate({"format": "rgbd", "root": root, field: 0.5})
    with pytest.raises(DataError, match=f"has no metres, so {field}"):
        open_dataset(config, relative=True)


def test_a_relative_set_without_its_files_names_them(tiny_data: str, tmp_path: Path) -> None:
    nothing = {"units": "inverse depth", "depth_scale": None, "max_depth_m": None}
    root = copied(tiny_data, tmp_path / "r", nothing)
    with pytest.raises(DataError, match=r"000\.inverse\.png: no such file"):
        open_dataset(DataConfig(format="rgbd", root=str(root)), relative=True)
    with pytest.raises(DataError, match=r"000\.inverse\.png: no such file"):
        open_mixture([DataConfig(format="rgbd", root=str(root))], relative=True)


def test_inverse_depth_is_16_bits(tiny_data: str, tmp_path: Path) -> None:
    root = relative(tiny_data, tmp_path / "r")
    path = root / "train/scene/000.inverse.png"
    path.unlink()
    Image.fromarray(np.ones((32, 40), np.float32)).save(path, "tiff")
    data = open_dataset(DataConfig(format="rgbd", root=str(root)), relative=True)
    with pytest.raises(DataError, match=r"000\.inverse\.png: inverse depth is 16-bit"):
        next(iter(data))


def test_where_metres_are_needed_a_relative_set_is_refused(tiny: TinyRuns) -> None:
    root = relative(tiny.data, tiny.folder / "r")
    config = DataConfig(format="rgbd", root=str(root), split="test")
    for opened in (open_dataset, lambda one: open_mixture([one])):
        with pytest.raises(DataError, match=r"r: holds relative depth .* metres are needed"):
            opened(config)
    samples = list(RgbdFolder(config))
    with pytest.raises(DataError, match="its depth is inverse depth, relative"):
        evaluate(lambda shown: [one.depth_1HW for one in shown], samples, get_protocol("rgbd"))
    measured = {"format": "rgbd", "root": tiny.data}
    labelled = {"format": "rgbd", "root": str(root)}
    for sets in ((labelled, measured), (measured, labelled)):
        data = {"train": [sets[0]], "validation": [{**sets[1], "split": "test"}]}
        with pytest.raises(DataError, match=r"metric: false"):
            train(tiny.config("run", data=data))
    for command in (("eval", "--head", "demo"), ("layers",)):
        name, *rest = command
        place = ("-o", str(tiny.folder / "out")) if name == "eval" else ()
        done = run(name, "--host", tiny.host, *rest, "--data", f"rgbd:{root}:test", *place)
        assert done.exit_code == 2
        assert "holds relative depth" in words(done.stderr)


# --- runs ------------------------------------------------------------------------------------


def relative_run(tiny: TinyRuns, name: str, *roots: str | Path, **changes: Any) -> Any:
    options = {**tiny.head, "metric": False}
    sets = [{"format": "rgbd", "root": str(root), "name": f"s{i}"} for i, root in enumerate(roots)]
    fields: dict[str, Any] = {
        "head": {"options": options},
        "data": {"train": sets, "validation": [{**one, "split": "test"} for one in sets]},
        "steps": 30,
        "ema": None,
        "augment": FLIP_ONLY,
        **changes,
    }
    return tiny.config(name, **fields)


def test_a_run_on_relative_and_measured_sets(tiny: TinyRuns) -> None:
    """Learns, selects by the aligned error, resumes, and says what its head is."""
    labelled = weighed(relative(tiny.data, tiny.folder / "r"), 200)
    logged = {"every": 1, "pictures": 2, "tensorboard": False}
    changes = {"logging": logged, "validate_every": 15, "loss": {"trim": 0.1}}
    result = train(relative_run(tiny, "run", labelled, tiny.data, **changes))
    losses = list(tiny.losses("run").values())
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert result.abs_rel is None
    assert set(result.metrics) == {"inverse_error", "inverse_error/s0", "inverse_error/s1"}
    records = [
        one for one in read_log(tiny.folder / "run/log.jsonl") if "validation" in one["kind"]
    ]
    assert min(one["inverse_error"] for one in records) == result.metrics["inverse_error"]
    assert not any("abs_rel" in name or "rmse" in name for one in records for name in one)
    assert list((tiny.folder / "run/pictures").iterdir())
    head = DepthHead.from_pretrained(result.head)
    assert not head.config.metric
    assert "labels of hf:org/teacher (licence cc-by-nc-4.0)" in head.config.provenance.data[0]
    assert "labels" not in head.config.provenance.data[1]
    assert json.loads((result.head / "config.json").read_text())["metric"] is False
    # The stored config is the same run.
    again = train(load_config(tiny.folder / "run/config.yaml"), resume=True)
    assert again.metrics == result.metrics
    stored = yaml.safe_load((tiny.folder / "run/config.yaml").read_text())
    assert stored["loss"] == {"trim": 0.1}


def test_cached_it_is_the_same_run(tiny: TinyRuns) -> None:
    labelled = relative(tiny.data, tiny.folder / "r")
    train(relative_run(tiny, "plain", labelled, tiny.data, steps=4))
    train(relative_run(tiny, "cached", labelled, tiny.data, steps=4, cache=cache_of(tiny)))
    assert tiny.losses("cached") == pytest.approx(tiny.losses("plain"), abs=1e-4)


def test_a_saved_head_goes_on_as_relative(tiny: TinyRuns) -> None:
    labelled = relative(tiny.data, tiny.folder / "r")
    first = train(relative_run(tiny, "first", labelled, steps=2))
    init = {"init": str(first.head)}
    second = train(relative_run(tiny, "second", labelled, steps=2, head=init))
    assert second.abs_rel is None
    for changes, message in (
        ({"select": "abs_rel_aligned"}, "select: does nothing"),
        ({"loss": {"silog": 1.0}}, "loss.silog: compares metres"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(relative_run(tiny, "third", labelled, steps=2, head=init, **changes))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"metric": False, "canonical_focal": 60.0}, {}, "canonical_focal: does nothing with metr"),
        ({"metric": False, "confidence": True}, {}, "confidence: does nothing with metric"),
        ({"metric": False}, {"select": "abs_rel_aligned"}, "select: does nothing"),
        ({"metric": False}, {"loss": {"silog": 0.5}}, "loss.silog: compares metres"),
        ({"metric": False}, {"loss": {"log_l1": 1.0}}, "loss.log_l1: compares metres"),
        ({"metric": False}, {"loss": {"gradient": 1.0}}, "loss.gradient: compares metres"),
        ({"metric": False}, {"loss": {"ssim": 1.0}}, "loss.ssim: compares metres"),
        ({"metric": False}, {"loss": {"auxiliary": [0.1]}}, "loss.auxiliary: compares metres"),
        ({"metric": False}, {"loss": {"silog_mean": 0.5}}, "loss.silog_mean: does nothing"),
        ({}, {"loss": {"ssi": 1.0}}, "loss.ssi: compares relative depth"),
        ({}, {"loss": {"ssi_gradient": 1.0}}, "loss.ssi_gradient: compares relative depth"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: dict[str, Any], changes: dict[str, Any], message: str, tiny: TinyRuns
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.config("run", head={"options": {**tiny.head, **options}}, **changes)


def test_a_share_of_the_scale_is_idle(tiny: TinyRuns) -> None:
    data = {"train": [{"format": "rgbd", "root": tiny.data, "scale_share": 0.5}]}
    with pytest.raises(ConfigError, match=r"data\.train\.0\.scale_share: does nothing"):
        tiny.config("run", head={"options": {**tiny.head, "metric": False}}, data=data)


# --- what such a head gives ------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(tiny_host: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relative-head")
    torch.manual_seed(0)
    model = load_host(tiny_host).model
    options: dict[str, Any] = {"channels": [8, 4], "semantic_levels": [2, 1], "film_hidden": 8}
    made = DepthHead.for_host(
        model, structural_levels=[0], activation="log", metric=False, **options
    )
    made.eval().save_pretrained(folder)
    return folder


def test_reading_says_it_and_cameras_are_refused(
    head: Path, tiny_host: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = load_host(tiny_host)
    loaded = DepthHead.from_pretrained(head).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with attach(host.model, loaded) as plugin, caplog.at_level(logging.WARNING):
        host.model(pixels)
        assert plugin.depth.shape == (2, 1, 28, 28)
        host.model(pixels)
        assert plugin.depths[0].shape == (1, 28, 28)
        said = [one.message for one in caplog.records if "relative depth, no metres" in one.message]
        assert len(said) == 1
        refused: list[Any] = [
            lambda: plugin.predict(focal_px=30.0),
            lambda: plugin.predict(intrinsics=(30.0, 30.0, 14.0, 14.0)),
            lambda: plugin(pixels, focal_px=30.0),
            lambda: plugin.confidence,
        ]
        for call in refused:
            with pytest.raises(HeadMismatchError):
                call()
        with pytest.raises(HeadMismatchError, match="relative depth"):
            plugin.predict(focal_px=30.0)


def test_the_card_says_it(head: Path) -> None:
    card = (head / "README.md").read_text()
    assert "**Not metres**" in card
    assert "relative depth, larger is farther" in card
    assert "without unit" in card
    for claim in ("metric depth", "metres =", "float32, metres", " m |"):
        assert claim not in card
    plain = model_card_text(HeadConfig(width=8))
    assert "gives metric depth" in plain
    assert "0.05 to 20 m (not enforced)" in plain


def test_predict_writes_inverse_depth_and_no_metres(
    head: Path, tiny_host: str, tiny_data: str, tmp_path: Path
) -> None:
    pictures, output = Path(tiny_data, "test/scene"), tmp_path / "out"
    options = ("--host", tiny_host, "--head", str(head), "-o", str(output))
    done = run("predict", str(pictures), *options, "--npy")
    assert done.exit_code == 0, done.output
    assert "relative depth, no metres" in words(done.stderr)
    suffixes = ("inverse.png", "inverse.npy", "colour.png")
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{path.stem}.{suffix}" for path in pictures.glob("*.jpg") for suffix in suffixes
    )
    inverse_HW = np.load(output / "000.inverse.npy")
    with opened_image(output / "000.inverse.png") as image:
        stored_HW, note = np.asarray(image).astype(float), image.info["Description"]
    assert "no metres" in note
    assert (stored_HW.min(), stored_HW.max()) == (1, 65535)
    span = inverse_HW.max() - inverse_HW.min()
    np.testing.assert_allclose(
        (stored_HW - 1) / 65534, (inverse_HW - inverse_HW.min()) / span, atol=1e-4
    )
    with opened_image(output / "000.colour.png") as image:
        assert image.info["Description"].startswith("relative depth")
    assert run("predict", str(pictures), *options).exit_code == 0  # its own are replaced
    refused = run("predict", str(pictures), *options, "--focal-px", "30")
    assert refused.exit_code == 2
    assert "relative depth" in words(refused.stderr)
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "labels/000.inverse.png")
    refused = run("predict", str(pictures), *options[:-1], str(tmp_path / "labels"))
    assert refused.exit_code == 2
    assert "000.inverse.png" in words(refused.stderr)


def test_eval_measures_it_aligned_alone(
    head: Path, tiny_host: str, tiny_data: str, tmp_path: Path
) -> None:
    root = copied(tiny_data, tmp_path / "pseudo", {"labels": TEACHER})
    options = ("--host", tiny_host, "--head", str(head), "-o", str(tmp_path / "report"))
    done = run("eval", *options, "--data", f"rgbd:{root}:test", "--pictures", "1")
    assert done.exit_code == 0, done.output
    assert "labels of hf:org/teacher" in words(done.output)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["relative"] is True
    assert report["align"] == "inverse"
    assert list(report["means"]) == list(report["baseline"]["means"]) == ["inverse"]
    assert report["labels"] == "hf:org/teacher (licence cc-by-nc-4.0)"
    with (tmp_path / "report/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"scale", "shift"} < rows[0].keys()
    for wrong in (("--align", "none"), ("--align", "median"), ("--flip",)):
        refused = run("eval", *options, "--data", f"rgbd:{root}:test", *wrong)
        assert refused.exit_code == 2
        assert "relative depth" in words(refused.stderr)


def test_the_alignment_finds_scale_and_shift() -> None:
    depth = torch.rand(9, 11) * 3 + 1
    valid = torch.rand(9, 11) < 0.7
    pred = (0.4 / depth + 0.05).reciprocal()
    fit = alignment_fit(pred, depth, valid, "inverse")
    torch.testing.assert_close(fit(pred, 10.0), depth.double(), rtol=1e-5, atol=1e-5)
    flat = alignment_fit(torch.ones(9, 11), depth, valid, "inverse")
    mean = (1 / depth[valid].double()).mean()
    assert float(flat(torch.ones(9, 11), 10.0)[0, 0]) == pytest.approx(1 / float(mean))
    beyond = alignment_fit(pred, depth, valid, "inverse")(torch.full((9, 11), 1e9), 7.0)
    assert float(beyond.max()) <= 7.0
    found = inverse_of(torch.tensor([0.0, 2.0, torch.nan])).tolist()
    assert found == pytest.approx([1000.0, 0.5, math.nan], nan_ok=True)


def test_views_of_an_image_do_not_join(head: Path, tiny_host: str) -> None:
    from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry

    host = load_host(tiny_host)
    plugin = attach(host.model, DepthHead.from_pretrained(head).eval())
    one = plugin.tower_pass(torch.randn(2, 3, 28, 28))
    two = ImageViews(tuple(ViewGeometry.squashed((40, 40), (28, 28)) for _ in range(2)))
    with pytest.raises(ClipDepthError, match="don't join"):
        one.in_images([two], None, None)
    plugin.detach()
