"""Heads trained on towers that take views of several sizes, and on hosts that cut tiles."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.calibrating.readings import read_points, uncalibrated
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.evaluation.layers import rank_levels
from clipdepth_plugin.evaluation.patches import PatchReader
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.session import open_session
from clipdepth_plugin.training.tower import load_tower
from clipdepth_plugin.training.validation import validate
from tests.tiny.packed import EVERY_PACKED
from tests.tiny.table import HOSTS
from tests.training.conftest import TinyRuns, write_plane
from tests.training.labelled import copied, relative, weighed

CAMERA = (40.0, 40.0, 19.5, 15.5)
SIZES = ((32, 40), (48, 24), (32, 40), (24, 56))
NORM = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25] * 3}
QWEN = {
    "size": {"shortest_edge": 256, "longest_edge": 2048},
    "patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "resample": 3,
}  # fmt: skip
T = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Host:
    """A tiny host: its name in the tables, its processor, and how that is run on pictures."""

    name: str
    processor: str
    options: dict[str, Any]

    def save(self, folder: Path) -> str:
        tables: dict[str, Any] = {case.name: case for case in HOSTS}
        tables |= {case.name: case for case in EVERY_PACKED}
        if tables[self.name].absent:
            pytest.skip(f"transformers {transformers.__version__} lacks {self.name}")
        tables[self.name].host().save_pretrained(folder)
        said = {"image_processor_type": self.processor, **NORM, **self.options}
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
        return str(folder)

    def run(self, model: Any, pictures: list[Image.Image]) -> None:
        """The host's own processor, and the host's own forward."""
        processor = getattr(transformers, self.processor)(**NORM, **self.options)
        inputs = processor(pictures, return_tensors="pt")
        see = getattr(model, "get_image_features", model)
        see(**inputs)


PACKED = (
    Host("qwen2_5_vl", "Qwen2VLImageProcessor", QWEN),
    Host("qwen3_vl", "Qwen2VLImageProcessor", QWEN),
    Host("siglip2", "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 24}),
)
TILED = Host(
    *("llava_next", "LlavaNextImageProcessor"),
    {"size": {"shortest_edge": 32}, "crop_size": T, "image_grid_pinpoints": [[32, 64], [64, 32]]},
)


@pytest.fixture(params=(*PACKED, TILED), ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    one: Host = request.param
    return one


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """An RGB-D folder with pictures of several sizes."""
    root = tmp_path / "mixed"
    for split in ("train", "test"):
        for index, size in enumerate(SIZES):
            write_plane(root / split / f"scene{index}" / "0", seed=index, size=size)
    meta = {"depth_scale": 1000, "intrinsics": {"default": CAMERA}}
    (root / "meta.json").write_text(json.dumps(meta))
    return str(root)


Make = Callable[..., TrainConfig]


@pytest.fixture
def make(tiny: TinyRuns, mixed: str, host: Host, tmp_path: Path) -> Make:
    """The config of a run on the host."""
    name = host.save(tmp_path / "host")
    options = {**tiny.exact_head, "semantic_levels": [4, 2], "canonical_focal": 30.0}
    train_set = {"format": "rgbd", "root": mixed, "split": "train"}
    sets = {"train": [train_set], "validation": [{**train_set, "split": "test"}]}

    def config(run: str, **changes: Any) -> TrainConfig:
        same = {"head": {"options": options}, "data": sets, "augment": None, "steps": 3}
        return tiny.config(run, host=name, batch_size=4, **{**same, **changes})

    return config


def trained(config: TrainConfig) -> DepthHead:
    train(config)
    return DepthHead.from_pretrained(Path(config.run) / "head").eval()


def pictures_of(config: TrainConfig) -> list[Any]:
    return [*open_dataset(DataConfig(format="rgbd", root=config.data.train[0].root, split="test"))]


@torch.no_grad()
@pytest.mark.parametrize("given", [{}, {"resize": "whole", "input_size": [32, 64]}])
def test_a_head_gives_in_the_host_what_it_gives_of_pictures(
    make: Make, host: Host, given: dict[str, Any]
) -> None:
    if given and host is TILED:
        given = {"resize": "whole"}
    with torch.enable_grad():
        config = make("run", **given)
        head = trained(config)
    assert head.config.resize == (config.resize)
    loaded = load_host(config.host)
    samples = pictures_of(config)
    pictures, cameras = [one.picture for one in samples], [one.intrinsics for one in samples]
    with attach(loaded.model, head, processor=loaded.preprocessing) as plugin:
        maps = PictureDepth(plugin)(pictures, cameras)
        alone = [PictureDepth(plugin)([one], CAMERA)[0] for one in pictures]
        measured = HeadPredictor(plugin)(samples)
        host.run(loaded.model, pictures)
        sizes = [(one.height, one.width) for one in pictures]
        beside = plugin.predict(original_sizes=sizes, intrinsics=cameras)
    for index, map_1HW in enumerate(maps):
        for other in (alone[index], measured[index]):
            torch.testing.assert_close(map_1HW, other, rtol=1e-4, atol=1e-4)
        if config.resize == "host":  # Pillow's and torchvision's resizes differ by a grey level
            torch.testing.assert_close(map_1HW, beside[index], rtol=0.03, atol=0.03)


def losses(config: TrainConfig) -> list[float]:
    session = open_session(config)
    return [session.stepper([batch], 1e-3, "test").loss for batch in session.train.batches(0)]


@pytest.mark.parametrize("given", [{}, {"resize": "whole", "input_size": [32, 64]}])
def test_cached_tokens_train_as_the_tower_does(
    make: Make, host: Host, given: dict[str, Any], tmp_path: Path
) -> None:
    if given and host is TILED:
        given = {"resize": "whole"}
    cache = {"folder": str(tmp_path / "cache"), "dtype": "float32"}
    plain, cached = make("plain", **given), make("cached", cache=cache, **given)
    expected = losses(plain)
    assert losses(cached) == pytest.approx(expected, rel=1e-5)
    assert losses(cached) == pytest.approx(expected, rel=1e-5)  # and from the files alone


@pytest.mark.parametrize("host", [PACKED[0], TILED], ids=lambda host: host.name, indirect=True)
@pytest.mark.parametrize("units", ["metres", "inverse depth"])
def test_labelled_sets_train_cached_as_the_tower_does(
    make: Make, mixed: str, tmp_path: Path, units: str
) -> None:
    """Agreement weights of one of two sets, whose views share batches, go with their runs."""
    plain, other = (copied(mixed, tmp_path / name) for name in ("plain", "labelled"))
    head: dict[str, Any] = {}
    if units != "metres":
        other = relative(mixed, tmp_path / "relative")
        options = {**make("any").head.options, "canonical_focal": None, "metric": False}
        loss = {"silog": 0.0, "ssim": 0.0, "ssi": 1.0, "auxiliary": []}
        head = {"head": {"options": options}, "loss": loss}

    def of(run: str, **changes: Any) -> list[float]:
        sets = [
            {"format": "rgbd", "root": str(root), "split": "train", "name": root.name}
            for root in (plain, other)
        ]
        data = {"train": sets, "validation": [{**sets[0], "split": "test"}]}
        return losses(make(run, data=data, **head, **changes))

    unweighed = of("unweighed")
    weighed(other)
    expected = of("weighed")
    assert all(a != pytest.approx(b, rel=1e-4) for a, b in zip(expected, unweighed, strict=True))
    cache = {"folder": str(tmp_path / "cache"), "dtype": "float32"}
    for run in ("filling", "from the files alone"):
        assert of(run, cache=cache) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_validation_measures_the_maps_that_predict_gives(make: Make, host: Host) -> None:
    """At the size of the loss, and of one view of each picture where there are tiles."""
    config = make("run")
    session = open_session(config)
    context = session.context
    model = session.model.eval()
    assert session.validation is not None
    head = context.accelerator.unwrap_model(model).head
    found = validate(context.accelerator, model, session.validation, context.size, ["all"], 4)
    assert found.images == 4
    if host is TILED:
        return
    plugin_maps = maps_of(config, head)
    for map_1HW, one_1HW in zip(plugin_maps, found.pictures, strict=True):
        torch.testing.assert_close(map_1HW, one_1HW, rtol=1e-4, atol=1e-4)


def maps_of(config: TrainConfig, head: DepthHead) -> list[Tensor]:
    """By ``PictureDepth``'s framing, at the size of the loss."""
    from clipdepth_plugin.adapters.pixels import shown

    loaded, samples = load_host(config.host), pictures_of(config)
    plugin = DepthPlugin(loaded.model, head, processor=loaded.preprocessing)
    views, placed = shown([one.picture for one in samples], PictureDepth(plugin).framing)
    cameras = [
        image.views[0].intrinsics(one.intrinsics)
        for image, one in zip(placed, samples, strict=True)
    ]
    out = plugin.views_pass(views).predict((16, 16), intrinsics=cameras)
    return list(out)


def test_levels_are_ranked(make: Make) -> None:
    config = make("run")
    loaded, samples = load_host(config.host), pictures_of(config)
    (tower,) = find_towers(loaded.model)
    assert loaded.preprocessing is not None
    reader = PatchReader(tower, loaded.preprocessing, None)
    ranking = rank_levels(reader, samples, stages=2)
    assert ranking.patches[0] > 20


@torch.no_grad()
def test_calibrating_reads_views_of_own_sizes(make: Make, host: Host) -> None:
    """The truth is the prediction's, three times as far: in the canonical camera's metres, too."""
    config = make("run")
    loaded, samples = load_host(config.host), pictures_of(config)
    options = {**config.head.options, "auxiliary": 0}
    head = DepthHead.for_host(loaded.model, config.head.preset, **options).eval()
    plugin = DepthPlugin(loaded.model, uncalibrated(head), processor=loaded.preprocessing)
    maps = HeadPredictor(plugin)(samples)
    truths = [replace(one, depth_1HW=3 * x_1HW) for one, x_1HW in zip(samples, maps, strict=True)]
    if host is TILED:
        with pytest.raises(ClipDepthError, match="views of several focal lengths"):
            read_points(plugin, truths)
        return
    points = read_points(plugin, truths).points
    canonical = PictureDepth(plugin)([one.picture for one in samples])
    rows = (points.log_pred_PK, points.log_true_PK, points.valid_PK, canonical)
    for log_K, true_K, valid_K, map_1HW in zip(*rows, strict=True):
        torch.testing.assert_close(true_K[valid_K], log_K[valid_K] + math.log(3), rtol=0, atol=1e-4)
        low, high = map_1HW.double().aminmax()
        assert low.log() - 1e-4 <= log_K[valid_K].min()
        assert log_K[valid_K].max() <= high.log() + 1e-4


@pytest.mark.parametrize("host", PACKED[:1], indirect=True)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resize": "whole"}, "input_size: resize: whole squashes every picture to one size"),
        ({"input_size": [32, 40]}, "whole multiples of 16 x 16"),
    ],
)
def test_what_no_view_can_be_made_of_is_refused(
    make: Make, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ClipDepthError, match=said):
        load_tower(make("run", **given))
