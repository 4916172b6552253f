"""Training a small head on ViT-B/16 at 224: from the cache, against tokens that are in memory
already (the head alone) and against running the tower.

    make bench PYTEST_ARGS="-k cache_speed"

The ratios are taken interleaved, pair by pair, so that drift of a shared machine cancels. The cache
should have 0.9 of the speed of the head alone, and 5 times that of the tower. It lies in the test's
folder and in the page cache, as that of any set which is smaller than the memory.

Axes: B views, N tokens, D width, K bytes of a record.
"""  # noqa: D205

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from clipdepth_plugin import DepthHead, DepthPlugin
from clipdepth_plugin.features import TowerFeatures, one_size
from clipdepth_plugin.training.batches import FeatureBatch
from clipdepth_plugin.training.cache_files import CacheFiles, Key, ShardWriter
from clipdepth_plugin.training.cache_layout import RecordLayout
from clipdepth_plugin.training.cache_source import CachedBatch, CachedSource
from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.session import make_accelerator
from clipdepth_plugin.training.step import Stepper
from clipdepth_plugin.training.trained import TrainedHead

BATCH, BATCHES, SIZE = 4, 2, (112, 112)
CONFIG = {
    "run": "unused",
    "host": "timm:vit_base_patch16_224",
    "head": {"preset": "fast"},
    "loss": {"auxiliary": []},
    "data": {"train": [{"format": "rgbd", "root": "unused"}]},
    "batch_size": BATCH,
}
Epoch = Callable[[], None]


@dataclass(frozen=True)
class Epochs:
    """The same training steps on features from three places."""

    in_memory: Epoch
    cached: Epoch
    through_the_tower: Epoch


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> Epochs:
    import timm

    torch.manual_seed(0)
    host = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0).eval()
    head = DepthHead.for_host(host, "fast")
    config = check_config(CONFIG, "benchmark")
    accelerator = make_accelerator(config)
    optimiser = torch.optim.AdamW(head.parameters())
    trained = TrainedHead(head, config.loss, patch_size=(16, 16), pixel_size=(224, 224))
    model, optimiser = accelerator.prepare(trained, optimiser)
    stepper = Stepper(accelerator, model, optimiser, config, SIZE)
    plugin = DepthPlugin(host, head)
    layout = RecordLayout(head.config.levels, (14, 14), 768, True, SIZE, torch.bfloat16)
    batches = [feature_batch(random_features(layout)) for _ in range(BATCHES)]
    cache = make_cache(tmp_path_factory.mktemp("cache"), layout, batches, accelerator.device)
    pixels_B3HW = torch.randn(BATCH, 3, 224, 224)

    def epoch(batches: Iterator[FeatureBatch]) -> None:
        for batch in batches:
            stepper([batch], 1e-4, "benchmark")

    return Epochs(
        lambda: epoch(iter(batches)),
        lambda: epoch(cache.batches(0)),
        lambda: epoch(
            feature_batch(one_size(plugin.features(pixels_B3HW))) for _ in range(BATCHES)
        ),
    )


def random_features(layout: RecordLayout) -> TowerFeatures:
    tokens = {k: torch.randn(BATCH, 196, 768).to(layout.dtype) for k in layout.levels}
    return TowerFeatures(tokens, torch.randn(BATCH, 768), layout.grid)


def feature_batch(features: TowerFeatures) -> FeatureBatch:
    depth_B1HW = 1 + torch.rand(BATCH, 1, *SIZE)
    names = [str(i) for i in range(BATCH)]
    return FeatureBatch(features, depth_B1HW, depth_B1HW > 0, torch.ones(BATCH), names)


def make_cache(
    folder: Path, layout: RecordLayout, batches: list[FeatureBatch], device: torch.device
) -> CachedSource:
    files, plan = CacheFiles.open(folder, {"format": 1}, layout), []
    writer, cameras_B4 = ShardWriter(files), torch.full((BATCH, 4), torch.nan)
    for number, batch in enumerate(batches):
        keys = [Key(f"{number}-{name}", "plain") for name in batch.names]
        writer.add(keys, batch.names, layout.pack(batch.features, batch.depth_B1HW, cameras_B4))
        plan.append(CachedBatch(keys, batch.names))
    writer.finish()
    files.refresh()
    return CachedSource(files, lambda *_: iter(plan), len(plan), device, None, prefetch=4)


def speed_ratio(cached: Epoch, other: Epoch, pairs: int) -> dict[str, float]:
    """Median and quartiles of the cache's speed over the other's, the order alternating."""
    ratios = []
    for i in range(pairs + 1):
        times = {}
        for call in (cached, other) if i % 2 else (other, cached):
            start = time.perf_counter()
            call()
            times[call] = time.perf_counter() - start
        ratios.append(times[other] / times[cached])
    low, middle, high = statistics.quantiles(ratios[1:], n=4)  # the first pair warms up
    return {"median": middle, "q25": low, "q75": high, "pairs": float(pairs)}


def test_training_steps(benchmark: BenchmarkFixture, epochs: Epochs) -> None:
    """The head alone: two steps of 4 pictures on tokens that are in memory already."""
    benchmark.extra_info["images"] = BATCH * BATCHES
    benchmark.pedantic(epochs.in_memory, rounds=5 if benchmark.enabled else 1)


@pytest.mark.parametrize(("other", "pairs"), [("in_memory", 20), ("through_the_tower", 6)])
def test_training_from_the_cache(
    benchmark: BenchmarkFixture,
    epochs: Epochs,
    report: Callable[[str], None],
    other: str,
    pairs: int,
) -> None:
    """Steps from the cache, and their speed against the other source of tokens."""
    if benchmark.enabled:
        ratio = speed_ratio(epochs.cached, getattr(epochs, other), pairs)
        benchmark.extra_info[f"speed over {other}"] = ratio
        quartiles = f"quartiles {ratio['q25']:.3f} to {ratio['q75']:.3f}, {pairs} pairs"
        what = f"fast head on ViT-B/16 at 224, from the cache / {other.replace('_', ' ')}"
        report(f"{what}, images/s: {ratio['median']:.3f} ({quartiles})")
    else:
        getattr(epochs, other)()
    benchmark.extra_info["images"] = BATCH * BATCHES
    benchmark.pedantic(epochs.cached, rounds=3 if benchmark.enabled else 1)
