"""What a head of relative depth says and gives: maps, cameras, card, predict, eval."""

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
from PIL import Image

from clipdepth_plugin import DepthHead, HeadConfig, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import ClipDepthError, HeadMismatchError
from clipdepth_plugin.evaluation.metrics import alignment_fit
from clipdepth_plugin.files.pictures import opened_image
from clipdepth_plugin.maps.alignment import inverse_of
from clipdepth_plugin.weights.model_card import model_card_text
from tests.tiny.command_line import run, words
from tests.training.labelled import TEACHER, copied

if TYPE_CHECKING:
    pass


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
