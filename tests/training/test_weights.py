"""Weights of pixels and trimming: read, carried with the depth, cached, and in every loss term."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import AugmentConfig, DataConfig, open_dataset
from clipdepth_plugin.data.augment import flipped, rotated, zoomed
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.data.views import View, make_view
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.losses import DepthLoss, LossConfig
from clipdepth_plugin.training.records import WEIGHT
from clipdepth_plugin.training.sealed import open_sealed
from clipdepth_plugin.training.terms.term import Part, Truth, trimmed
from tests.training.labelled import copied, weighed
from tests.training.test_cache import FLIP_ONLY, cache_of

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

TERMS = {
    "silog": LossConfig(ssim=0, auxiliary=()),
    "log_l1": LossConfig(silog=0, ssim=0, log_l1=1, auxiliary=()),
    "ssim": LossConfig(silog=0, ssim=1, auxiliary=()),
    "gradient": LossConfig(silog=0, ssim=0, gradient=1, auxiliary=()),
    "confidence": LossConfig(silog=1, ssim=0, confidence=1, auxiliary=()),
    "ssi": LossConfig(silog=0, ssim=0, ssi=1, ssi_gradient=1, auxiliary=()),
    "trimmed": LossConfig(silog=1, ssim=0, log_l1=1, ssi=1, trim=0.1, auxiliary=(0.1,)),
}


def batch(seed: int = 0, n: int = 3, shape: tuple[int, int] = (8, 9)) -> tuple[Tensor, Truth]:
    """Prediction and truth with holes and weights, some 0."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(n, 1, *shape, generator=g, dtype=torch.float64) * 4 + 0.5
    pred = depth * torch.exp(0.3 * torch.randn(depth.shape, generator=g, dtype=torch.float64))
    valid = torch.rand(depth.shape, generator=g) < 0.8
    weight = torch.randint(0, 256, depth.shape, generator=g).double() / 255
    return pred, Truth(depth * valid, valid & (weight > 0), weight)


def total_of(
    config: LossConfig, pred: Tensor, truth: Truth, log_scale: Tensor | None = None
) -> Tensor:
    """The loss in float64, with its graph; one auxiliary output."""
    log_scale = torch.full_like(pred, -2.0) if log_scale is None else log_scale
    given = DepthEstimate(pred, log_scale, (pred * 2,))
    parts: list[Part] = [part for part in config.all_parts() if part.weight > 0]
    values = [part.weight * part.value(part.sums(given, truth)) for part in parts]
    return torch.stack(values).sum()


@pytest.mark.parametrize("config", TERMS.values(), ids=TERMS)
def test_gradients_of_weighted_terms(config: LossConfig) -> None:
    pred, truth = batch(n=2)
    given = pred.requires_grad_()
    if config.confidence:  # the depth that it is the scale of counts as given
        config = config.model_copy(update={"silog": 0.0})
        given = (pred.detach() * 0 - 2.0).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: total_of(config, pred, truth, x), (given,))
    else:
        assert torch.autograd.gradcheck(lambda x: total_of(config, x, truth), (given,))


@pytest.mark.parametrize("config", TERMS.values(), ids=TERMS)
def test_weights_of_one_and_zero_are_a_mask(config: LossConfig) -> None:
    pred, truth = batch()
    kept = truth.valid_B1HW & (torch.arange(9) % 4 > 0)
    masked = total_of(config, pred, Truth(truth.depth_B1HW, kept))
    for factor in (1.0, 0.5):  # all alike: their size makes no difference
        weights = kept.double() * factor
        weighted = total_of(config, pred, Truth(truth.depth_B1HW, kept, weights))
        torch.testing.assert_close(weighted, masked, rtol=1e-9, atol=0)


@pytest.mark.parametrize("config", TERMS.values(), ids=TERMS)
def test_batches_are_pooled_picture_by_picture(config: LossConfig) -> None:
    """The sums of two batches, added, are those of both together."""
    pred, truth = batch(n=4)
    given = DepthEstimate(pred, pred * 0 - 2.0, (pred * 2,))

    def sums(part: Part, rows: slice) -> Tensor:
        some = DepthEstimate(pred[rows], given.log_scale[rows], (pred[rows] * 2,))  # type: ignore[index]
        return part.sums(some, Truth(*(x[rows] for x in truth if x is not None)))

    for part in config.all_parts():
        whole = sums(part, slice(None))
        halves = sums(part, slice(0, 1)) + sums(part, slice(1, 4))
        torch.testing.assert_close(whole, halves, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("odd", ["invalid", "no weight", "one pixel", "constant", "zeros", "tiny"])
def test_nothing_to_learn_gives_no_nan(config: LossConfig, odd: str) -> None:
    pred, truth = batch()
    depth, valid, weight = truth.depth_B1HW.clone(), truth.valid_B1HW.clone(), truth.weights()
    if odd == "invalid":
        valid[:] = False
    elif odd == "no weight":
        weight, valid = weight * 0, valid & False
    elif odd == "one pixel":
        valid[:] = False
        valid[..., 2, 3] = True
        depth = depth.clamp_min(0.5)
    elif odd == "constant":
        depth[:] = 2.0
    elif odd == "tiny":
        weight = weight * 1e-6
    else:
        pred = pred * 0
    pred[~valid], depth[~valid] = torch.nan, torch.nan
    pred.requires_grad_()
    total = total_of(config, pred, Truth(depth, valid, weight))
    (gradient,) = torch.autograd.grad(total, pred)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    assert (gradient[~valid] == 0).all()


def test_all_the_same_weight_is_no_weight() -> None:
    pred, truth = batch()
    config = LossConfig(gradient=1.0, log_l1=1.0, auxiliary=())
    plain = DepthLoss(config)(DepthEstimate(pred), truth.depth_B1HW, truth.valid_B1HW)
    full = torch.full_like(pred, 0.25)
    weighted = DepthLoss(config)(
        DepthEstimate(pred), truth.depth_B1HW, truth.valid_B1HW, None, full
    )
    assert weighted.total.item() == pytest.approx(plain.total.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("trim", "count", "left"),
    [(0.1, 10, 9), (0.3, 10, 7), (0.29, 100, 71), (0.1, 9, 9), (0.9, 10, 1), (0.5, 1, 1)],
)
def test_the_worst_pixels_are_left_out_exactly(trim: float, count: int, left: int) -> None:
    error = torch.arange(2 * count, dtype=torch.float64).view(2, 1, 1, count) - 3
    truth = Truth(error, torch.ones_like(error, dtype=torch.bool))
    kept = trimmed(truth, error, trim).valid_B1HW
    assert kept.sum(dim=3).flatten().tolist() == [left, left]
    worst = error.abs().masked_fill(kept, -1).amax(dim=3)
    assert (worst <= error.abs().amax(dim=3)).all()
    assert not kept[1, 0, 0, left:].any()


def test_trimming_respects_weights_and_holes() -> None:
    error = torch.tensor([9.0, 8.0, 7.0, 1.0, 50.0]).view(1, 1, 1, 5)
    valid = torch.tensor([True, True, True, True, False]).view(1, 1, 1, 5)
    weight = torch.tensor([0.1, 0.1, 0.4, 0.4, 1.0]).view(1, 1, 1, 5)
    kept = trimmed(Truth(error, valid, weight), error, 0.2).valid_B1HW
    assert kept.flatten().tolist() == [False, False, True, True, False]
    plain = trimmed(Truth(error, valid), error, 0.25).valid_B1HW
    assert plain.flatten().tolist() == [False, True, True, True, False]


def test_nan_is_not_trimmed_away() -> None:
    pred, truth = batch()
    pred[truth.valid_B1HW.nonzero(as_tuple=True)[0][0]] = torch.nan
    assert total_of(TERMS["trimmed"], pred, truth).isnan()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trim": 1.0}, "trim"),
        ({"trim": -0.1}, "trim"),
        ({"trim": True}, "trim"),
        ({"trim": 0.1, "silog": 0, "auxiliary": []}, "trim: does nothing with"),
        ({"log_l1": -1}, "log_l1"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig(**fields)


def test_the_weight_stays_with_its_depth() -> None:
    """Through resize, filling of sparse truth, flip, rotation and zoom."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(1, 256, (1, 31, 43), generator=g, dtype=torch.uint8)
    holes = torch.rand(1, 31, 43, generator=g) < 0.5
    depth = weight.float().masked_fill(holes, 0)  # so that it tells where it is from
    image = torch.zeros(3, 31, 43, dtype=torch.uint8)
    known = Preprocessing(
        size=(28, 28), mean=(0.5,) * 3, std=(0.5,) * 3, resize="shortest", resize_to=30
    )
    view = make_view(Sample(image, depth, None, "", weight), known, (9, 13))
    without = make_view(Sample(image, depth, None, ""), known, (9, 13))
    changes: list[Callable[[View], View]] = [
        lambda one: one,
        flipped,
        lambda one: rotated(one, 20.0),
        lambda one: zoomed(one, 1.4, (0.3, 0.8)),
    ]
    for change in changes:
        made, plain = change(view), change(without)
        assert made.weight_1hw is not None
        assert made.weight_1hw.dtype == torch.uint8
        there = made.depth_1hw > 0
        assert there.any()
        assert torch.equal(made.depth_1hw[there], made.weight_1hw[there].float())
        assert torch.equal(made.depth_1hw, plain.depth_1hw)
        assert plain.weight_1hw is None


def test_agreement_is_read_and_what_has_none_has_no_depth(tiny_data: str, tmp_path: Path) -> None:
    root = weighed(copied(tiny_data, tmp_path / "a"))
    sample = next(iter(open_dataset(DataConfig(format="rgbd", root=str(root)))))
    assert sample.weight_1HW is not None
    assert sample.weight_1HW[0, 0].tolist()[::39] == [0, 255]
    assert not sample.depth_1HW[sample.weight_1HW == 0].any()
    before = next(iter(open_dataset(DataConfig(format="rgbd", root=tiny_data))))
    counts = sample.weight_1HW > 0
    assert torch.equal(sample.depth_1HW[counts], before.depth_1HW[counts])
    assert before.weight_1HW is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"agreement.png: is .* of 8 x 8 .* 32 x 40"),
        (np.zeros((32, 40), np.uint16), "expected 8-bit grey"),
        (np.zeros((32, 40, 3), np.uint8), "expected 8-bit grey"),
        (None, "agreement.png"),
    ],
    ids=["size", "16 bits", "colour", "damaged"],
)
def test_wrong_agreement(array: Any, message: str, tiny_data: str, tmp_path: Path) -> None:
    root = copied(tiny_data, tmp_path / "a")
    path = root / "train/scene/000.agreement.png"
    if array is None:
        path.write_bytes(b"no picture")
    else:
        Image.fromarray(array).save(path)
    data = open_dataset(DataConfig(format="rgbd", root=str(root)))
    with pytest.raises(DataError, match=message):
        next(iter(data))


def data_of(*roots: str | Path, validation: str | Path) -> dict[str, Any]:
    train = [{"format": "rgbd", "root": str(root), "name": f"s{i}"} for i, root in enumerate(roots)]
    test = {"format": "rgbd", "root": str(validation), "split": "test"}
    return {"train": train, "validation": [test]}


def test_a_labelled_set_beside_a_measured_one_with_and_without_a_cache(tiny: TinyRuns) -> None:
    """The same losses; equal weights change nothing; the cache of sets without costs nothing."""
    loss = {"silog": 1.0, "ssim": 0.0, "log_l1": 0.5, "gradient": 0.5, "trim": 0.1, "auxiliary": []}
    graded = weighed(copied(tiny.data, tiny.folder / "graded"))
    equal = weighed(copied(tiny.data, tiny.folder / "equal"), 255)
    common: dict[str, Any] = {"loss": loss, "augment": FLIP_ONLY}
    runs: dict[str, tuple[str | Path, str | Path]] = {
        "measured": (tiny.data, tiny.data),
        "equal": (tiny.data, equal),
        "graded": (tiny.data, graded),
    }
    for name, roots in runs.items():
        data = data_of(*roots, validation=tiny.data)
        train(tiny.config(name, data=data, **common))
        if name == "equal":
            continue
        cache = cache_of(tiny, folder=f"cache-{name}")
        train(tiny.config(f"{name}-cached", data=data, cache=cache, **common))
        cached = tiny.losses(f"{name}-cached")
        assert cached == pytest.approx(tiny.losses(name), abs=1e-4)
    assert tiny.losses("equal") == pytest.approx(tiny.losses("measured"), rel=1e-6)
    assert tiny.losses("graded") != pytest.approx(tiny.losses("measured"), rel=1e-3)
    for name, holds in (("measured", False), ("graded", True)):
        shards = [open_sealed(path) for path in (tiny.folder / f"cache-{name}").glob("shard*")]
        assert any(WEIGHT in shard.tensors for shard in shards) == holds
    # A folder of records without weights takes those of a set that has some, and is read on.
    cache = cache_of(tiny, folder="cache-measured")
    data = data_of(*runs["graded"], validation=tiny.data)
    train(tiny.config("joined", data=data, cache=cache, **common))
    assert tiny.losses("joined") == pytest.approx(tiny.losses("graded"), abs=1e-4)


def test_a_set_whose_weights_are_all_0_trains_nothing_and_breaks_nothing(tiny: TinyRuns) -> None:
    nothing = weighed(copied(tiny.data, tiny.folder / "nothing"), 0)
    data = data_of(nothing, validation=tiny.data)
    result = train(tiny.config("run", data=data, loss={"ssim": 0.0, "trim": 0.1}))
    assert result.abs_rel is not None
    assert all(np.isfinite(list(tiny.losses("run").values())))


def test_augmented_views_carry_weights_into_the_cache(tiny: TinyRuns) -> None:
    graded = weighed(copied(tiny.data, tiny.folder / "graded"))
    data = data_of(graded, validation=tiny.data)
    augment = AugmentConfig(probability=1.0).model_dump(mode="json")
    cache = cache_of(tiny, views=3)
    train(tiny.config("run", data=data, augment=augment, cache=cache, loss={"ssim": 0.0}))
    shards = [open_sealed(path) for path in (tiny.folder / "cache").glob("shard*")]
    for shard in shards:
        if WEIGHT in shard.tensors:
            depth, weight = shard.tensors["depth"], shard.tensors[WEIGHT]
            assert weight.dtype == torch.uint8
            assert not depth[weight == 0].any()
