"""Training steps from the token cache, against tokens in memory and against running the tower.

    make bench BENCH_ONLY= PYTEST_ARGS="-k cache"

Heads on ViT-B/16 at 224. The cache should reach 0.9 of the speed of tokens in memory, and 5
times that of the tower. It lies in the page cache, as that of any data set smaller than the memory.

Axes: B views, H W a depth map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from clipdepth_plugin import DepthHead, DepthPlugin, HeadConfig
from clipdepth_plugin.data.reading import map_ahead
from clipdepth_plugin.features import Run, TowerFeatures, one_size
from clipdepth_plugin.latency.intervals import Interval, median_interval
from clipdepth_plugin.latency.rounds import Variant, run_rounds, wall_timer
from clipdepth_plugin.training.accelerator import make_accelerator
from clipdepth_plugin.training.batches import FeatureBatch
from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.records import features_of, to_records
from clipdepth_plugin.training.step import Stepper
from clipdepth_plugin.training.token_cache import Key, TokenCache
from clipdepth_plugin.training.trained import TrainedHead

BATCH, BATCHES, SIZE, GRID = 4, 2, (112, 112), (14, 14)
CONFIG = {
    "run": "unused",
    "host": "timm:vit_base_patch16_224",
    "data": {"train": [{"format": "rgbd", "root": "unused"}]},
    "batch_size": BATCH,
}
Epoch = Callable[[], None]


@dataclass(frozen=True)
class Epochs:
    """The same training steps of a head on features from three sources."""

    preset: str
    in_memory: Epoch
    cached: Epoch
    through_the_tower: Epoch


@pytest.fixture(scope="module", params=["fast", "guided"])
def epochs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Epochs:
    import timm

    torch.manual_seed(0)
    host = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0).eval()
    head = DepthHead.for_host(host, request.param)
    config = check_config({**CONFIG, "head": {"preset": request.param}}, "benchmark")
    accelerator = make_accelerator(config)
    optimiser = torch.optim.AdamW(head.parameters())
    loss = config.loss_for(head.config, SIZE)
    trained = TrainedHead(head, loss, patch_size=(16, 16))
    model, optimiser = accelerator.prepare(trained, optimiser)
    config = config.model_copy(update={"loss": loss})
    stepper = Stepper(accelerator, model, optimiser, config, SIZE)
    plugin = DepthPlugin(host, head)
    batches = [feature_batch(random_features(head.config)) for _ in range(BATCHES)]
    folder = tmp_path_factory.mktemp("cache")
    cached = cached_batches(folder, head.config.levels, batches)
    pixels_B3HW = torch.randn(BATCH, 3, 224, 224)

    def epoch(batches: Iterator[FeatureBatch]) -> None:
        for batch in batches:
            stepper([batch], 1e-4, "benchmark")

    return Epochs(
        request.param,
        lambda: epoch(iter(batches)),
        lambda: epoch(cached()),
        lambda: epoch(
            feature_batch(one_size(plugin.features(pixels_B3HW))) for _ in range(BATCHES)
        ),
    )


def random_features(head: HeadConfig) -> TowerFeatures:
    tokens = {k: torch.randn(BATCH, 196, 768).bfloat16() for k in head.levels}
    pixels_B3HW = torch.randn(BATCH, 3, 224, 224) if head.reads_pixels else None
    return TowerFeatures(tokens, torch.randn(BATCH, 768), GRID, pixels_B3HW)


def feature_batch(features: TowerFeatures, depth_B1HW: Tensor | None = None) -> FeatureBatch:
    if depth_B1HW is None:
        depth_B1HW = 1 + torch.rand(BATCH, 1, *SIZE)
    names, parts_B = [str(i) for i in range(BATCH)], torch.zeros(BATCH, dtype=torch.int64)
    scale_B = torch.ones(BATCH)
    runs = [Run(features, (224, 224))]
    return FeatureBatch(runs, depth_B1HW, depth_B1HW > 0, scale_B, names, parts_B)


def cached_batches(
    folder: Path, levels: tuple[int, ...], batches: list[FeatureBatch]
) -> Callable[[], Iterator[FeatureBatch]]:
    """Batches read from a cache as a run reads them."""
    cache, plan = TokenCache(folder, {"format": 1}), []
    cameras_B4 = torch.full((BATCH, 4), torch.nan)
    for number, batch in enumerate(batches):
        keys = [Key(f"{number}-{name}", "plain") for name in batch.names]
        truth = (batch.depth_B1HW, cameras_B4)
        cache.add(keys, to_records(batch.features, *truth, levels=levels, dtype=torch.bfloat16))
        plan.append(keys)
    cache.flush()
    cache.refresh()

    def read() -> Iterator[FeatureBatch]:
        for records in map_ahead(cache.read, plan, threads=4, ahead=4):
            depth_B1HW = records.pop("depth")
            yield feature_batch(features_of(records, levels, GRID), depth_B1HW)

    return read


def speed_ratio(cached: Epoch, other: Epoch, rounds: int) -> Interval:
    """The cache's speed over the other's, in interleaved rounds."""
    variants = [Variant("cached", cached), Variant("other", other)]
    times = run_rounds(variants, rounds, wall_timer(), warmup=1)
    return median_interval(times["other"] / times["cached"])


def test_training_steps(benchmark: BenchmarkFixture, epochs: Epochs) -> None:
    """The head alone: two steps of 4 pictures on tokens that are in memory already."""
    benchmark.extra_info["images"] = BATCH * BATCHES
    benchmark.pedantic(epochs.in_memory, rounds=5 if benchmark.enabled else 1)


@pytest.mark.parametrize(("other", "rounds"), [("in_memory", 20), ("through_the_tower", 8)])
def test_training_from_the_cache(
    benchmark: BenchmarkFixture,
    epochs: Epochs,
    report: Callable[[str], None],
    other: str,
    rounds: int,
) -> None:
    """Steps from the cache, and their speed against the other source of tokens."""
    if benchmark.enabled:
        ratio = speed_ratio(epochs.cached, getattr(epochs, other), rounds)
        benchmark.extra_info[f"speed over {other}"] = asdict(ratio)
        what = f"{epochs.preset} on ViT-B/16 at 224, cache / {other.replace('_', ' ')}"
        report(f"{what}, images/s: {ratio}")
    else:
        getattr(epochs, other)()
    benchmark.extra_info["images"] = BATCH * BATCHES
    benchmark.pedantic(epochs.cached, rounds=3 if benchmark.enabled else 1)
