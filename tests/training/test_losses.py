"""Every loss term against NumPy, its gradient, and its pooling over processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.training.losses import (
    DepthLoss,
    LossConfig,
    LossTerms,
)
from clipdepth_plugin.training.terms.gradient import gradient_moments
from clipdepth_plugin.training.terms.silog import silog_from_moments, silog_moments
from clipdepth_plugin.training.terms.ssim import ssim_moments
from clipdepth_plugin.training.terms.term import Truth, mean_from_moments

Map = NDArray[np.float64]
Maps = tuple[Tensor, Tensor, Tensor]


def maps(seed: int = 0, share: float = 0.7, shape: tuple[int, int] = (17, 22), n: int = 3) -> Maps:
    """Prediction, truth and valid mask; invalid truth is 0 as in data sets."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(n, 1, *shape, generator=g, dtype=torch.float64) * 4 + 0.5
    pred = depth * torch.exp(0.3 * torch.randn(depth.shape, generator=g, dtype=torch.float64))
    valid = torch.rand(depth.shape, generator=g) < share
    return pred, depth * valid, valid


def given(pred: Tensor, aux: list[Tensor], log_scale: Tensor | None = None) -> DepthEstimate:
    return DepthEstimate(pred, log_scale, tuple(aux))


def numpy_silog(pred: Tensor, depth: Tensor, valid: Tensor, mean_weight: float = 0.15) -> float:
    d = np.log(pred.numpy()[valid.numpy()]) - np.log(depth.numpy()[valid.numpy()])
    return float(10 * np.sqrt(np.var(d) + mean_weight * np.mean(d) ** 2))


def numpy_ssim_map(x: Map, y: Map) -> Map:
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(z: Map) -> Map:
        for axis in (0, 1):
            width = [(5, 5) if axis == a else (0, 0) for a in (0, 1)]
            windows = np.lib.stride_tricks.sliding_window_view(
                np.pad(z, width, "reflect"), 11, axis
            )
            z = windows @ taps
        return z

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ratio: Map = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ratio


def numpy_ssim_loss(pred: Tensor, depth: Tensor, valid: Tensor) -> float:
    lost = []
    for p, t, v in zip(pred[:, 0].numpy(), depth[:, 0].numpy(), valid[:, 0].numpy(), strict=True):
        if not v.any():
            continue
        low, high = t[v].min(), t[v].max()
        p01, t01 = (np.where(v, np.clip((x - low) / (high - low), 0, 1), 0) for x in (p, t))
        lost.append((1 - numpy_ssim_map(p01, t01))[v])
    return float(np.concatenate(lost).mean())


def numpy_gradient_loss(pred: Tensor, depth: Tensor, valid: Tensor, scales: int) -> float:
    """Cell by cell, as the docstring words it."""
    means = []
    for k in range(scales):
        cell, steps = 2**k, []
        for p, t, v in zip(pred[:, 0], depth[:, 0], valid[:, 0], strict=True):
            rows, columns = -(-p.shape[0] // cell), -(-p.shape[1] // cell)
            grid = np.full((rows, columns), np.nan)
            for i in range(rows):
                for j in range(columns):
                    where = np.s_[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
                    inside = v[where]
                    if inside.any():
                        grid[i, j] = (p[where][inside].log() - t[where][inside].log()).mean()
            for axis in (0, 1):
                step = np.abs(np.diff(grid, axis=axis))
                steps.append(step[np.isfinite(step)])
        found = np.concatenate(steps)
        means.append(found.mean() if found.size else 0.0)
    return float(np.mean(means))


@pytest.mark.parametrize("share", [1.0, 0.7, 0.03], ids=["dense", "holes", "sparse"])
def test_terms_agree_with_numpy(share: float) -> None:
    pred, depth, valid = maps(share=share)
    silog = silog_from_moments(silog_moments(pred, Truth(depth, valid)))
    assert silog.item() == pytest.approx(numpy_silog(pred, depth, valid), abs=1e-9)
    ssim = mean_from_moments(ssim_moments(pred, Truth(depth, valid)))
    assert ssim.item() == pytest.approx(numpy_ssim_loss(pred, depth, valid), abs=1e-7)
    gradient = mean_from_moments(gradient_moments(pred, Truth(depth, valid), 4))
    assert gradient.item() == pytest.approx(numpy_gradient_loss(pred, depth, valid, 4), abs=1e-9)


def test_silog_in_float32_keeps_six_digits_where_the_mean_is_far_from_0() -> None:
    pred, depth, valid = maps(n=8, shape=(64, 64))
    pred = (depth * 1.001 + 1e-3).where(valid, torch.ones_like(pred)) * 50
    loss = silog_from_moments(silog_moments(pred.float(), Truth(depth.float(), valid)), 0.0)
    assert loss.item() == pytest.approx(numpy_silog(pred, depth, valid, 0.0), rel=1e-3)


def test_total_is_the_weighted_sum() -> None:
    pred, depth, valid = maps()
    aux = [pred * 1.5, pred * 0.5, pred]
    config = LossConfig(gradient=0.25, gradient_scales=2)
    loss = DepthLoss(config)(given(pred, aux), depth, valid)
    expected = {
        "silog": numpy_silog(pred, depth, valid),
        "ssim": numpy_ssim_loss(pred, depth, valid),
        "gradient": numpy_gradient_loss(pred, depth, valid, 2),
        "aux0": numpy_silog(aux[0], depth, valid),
        "aux1": numpy_silog(aux[1], depth, valid),
    }
    assert {n: t.item() for n, t in loss.terms.items()} == pytest.approx(expected, rel=1e-6)
    weights = {"silog": 0.5, "ssim": 0.5, "gradient": 0.25, "aux0": 0.10, "aux1": 0.05}
    total = sum(weights[name] * value for name, value in expected.items())
    assert loss.total.item() == pytest.approx(total, rel=1e-6)
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(ssim=0, auxiliary=()),
        LossConfig(silog=0, ssim=1, auxiliary=()),
        LossConfig(silog=0, ssim=0, gradient=1, auxiliary=()),
        LossConfig(ssim=0, auxiliary=(0.1, 0.05)),
    ],
    ids=["silog", "ssim", "gradient", "auxiliary"],
)
def test_gradients(config: LossConfig) -> None:
    pred, depth, valid = maps(shape=(8, 9), n=2)

    def total(x: Tensor) -> Tensor:
        seen = given(x, [x * 2, x * 3])
        parts = [part for part in config.all_parts() if part.weight > 0]
        return torch.stack(
            [part.weight * part.value(part.sums(seen, Truth(depth, valid))) for part in parts]
        ).sum()

    assert torch.autograd.gradcheck(total, (pred.requires_grad_(),))


def test_confidence_is_trained_by_a_laplace_likelihood() -> None:
    """Least where the scale is the mean error; the depth is not moved by it."""
    pred, depth, valid = maps(share=0.7)
    pred.requires_grad_()
    config = LossConfig(silog=1e-9, ssim=0, auxiliary=(), confidence=1.0)
    error = (pred.log() - depth.log()).abs()[valid].mean().detach()
    losses = []
    for factor in (0.8, 1.0, 1.25):
        log_scale = torch.full_like(depth, float(error * factor)).log().requires_grad_()
        terms = DepthLoss(config)(given(pred, [], log_scale), depth, valid)
        losses.append(terms.terms["confidence"].item())
        (scale_gradient,) = torch.autograd.grad(terms.total, log_scale)
        assert scale_gradient[~valid].abs().sum() == 0
    assert losses[1] == pytest.approx(math.log(2 * error) + 1, rel=1e-6)
    assert losses[1] < min(losses[0], losses[2])
    terms = DepthLoss(config)(given(pred, [], torch.zeros_like(depth)), depth, valid)
    (moved,) = torch.autograd.grad(terms.total, pred)
    assert moved.abs().max() < 1e-6
    empty = DepthLoss(config)(
        given(pred, [], torch.zeros_like(depth)), depth, torch.zeros_like(valid)
    )
    assert empty.terms["confidence"].item() == 0


EVERY_TERM = LossConfig(gradient=0.5, confidence=0.3, auxiliary=(0.1,))


def every_term(
    pred: Tensor, log_scale: Tensor, truth: tuple[Tensor, Tensor], share: Tensor | None
) -> LossTerms:
    seen = given(pred, [pred * 1.1], log_scale)
    return DepthLoss(EVERY_TERM)(seen, *truth, share)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.03], ids=["dense", "holes", "sparse"])
def test_the_scale_of_a_view_counts_by_its_share(share: float) -> None:
    pred, depth, valid = maps(share=share)
    pred[~valid], truth, scale = torch.nan, (depth, valid), torch.full_like(depth, -2.0)
    plain = every_term(pred, scale, truth, None).terms
    # Ones change nothing; a view of share 0 may be of any scale, in every term.
    ones = every_term(pred, scale, truth, torch.ones(3, dtype=torch.float64)).terms
    assert plain == ones
    free = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    other = pred * torch.tensor([1.0, 5.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    assert every_term(other, scale, truth, None).terms["silog"] > plain["silog"]
    found, same = (every_term(one, scale, truth, free).terms for one in (pred, other))
    assert found.keys() == {"silog", "aux0", "ssim", "gradient", "confidence"}
    torch.testing.assert_close(same, found)
    # A part of it: as NumPy has it.
    shares = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    shrunk = pred.clone()
    for i, factor in enumerate(1 - shares):
        d = (pred[i].log() - depth[i].log())[valid[i]]
        shrunk[i] *= torch.exp(-factor * d.mean())
    got = every_term(pred, scale, truth, shares).terms
    assert got["silog"].item() == pytest.approx(numpy_silog(shrunk, depth, valid), rel=1e-6)
    d = (shrunk.log() - depth.log())[valid].abs()
    likely = math.log(2) - 2 + float(d.mean()) * math.exp(2)
    assert got["confidence"].item() == pytest.approx(likely, rel=1e-6)


def test_a_view_without_scale_trains_none() -> None:
    """Its whole scale has no gradient, nor has its confidence learnt from it; its shape has."""
    pred, depth, valid = maps()
    factor = torch.ones(3, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    scales = []
    for times in (1.0, 4.0):
        log_scale = torch.full_like(depth, -2.0).requires_grad_()
        seen = pred.detach().requires_grad_()
        free = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
        total = every_term(seen * factor * times, log_scale, (depth, valid), free).total
        of_factor, of_pred, of_scale = torch.autograd.grad(total, (factor, seen, log_scale))
        assert of_factor[1].abs().item() < 1e-6 < min(of_factor[[0, 2]].abs().flatten().tolist())
        assert torch.isfinite(of_pred).all()
        assert of_pred[1][valid[1]].abs().max() > 1e-6
        scales.append(of_scale[1])
    torch.testing.assert_close(*scales)


def test_dead_predictions_have_no_scale_to_lose() -> None:
    pred, depth, valid = maps()
    pred[0], pred[~valid] = 0.0, torch.nan
    pred.requires_grad_()
    share = torch.zeros(3, dtype=torch.float64)
    for mask in (valid, torch.zeros_like(valid)):
        total = every_term(pred, torch.zeros_like(depth), (depth, mask), share).total
        (gradient,) = torch.autograd.grad(total, pred)
        assert torch.isfinite(total)
        assert torch.isfinite(gradient).all()


def test_dead_and_nonsense_predictions() -> None:
    pred, depth, valid = maps()
    pred[0] = 0.0
    pred[~valid] = torch.nan
    depth[~valid] = torch.nan
    pred.requires_grad_()
    loss = DepthLoss(LossConfig(gradient=1.0))(given(pred, [pred, pred]), depth, valid)
    torch.autograd.backward(loss.total)
    assert torch.isfinite(loss.total)
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad[~valid] == 0).all()
    floored = torch.where(valid, pred.detach(), 1.0).clamp_min(1e-3)
    expected = numpy_silog(floored, torch.where(valid, depth, 1.0), valid)
    assert loss.terms["silog"].item() == pytest.approx(expected, rel=1e-6)


def test_nan_at_a_valid_pixel_is_not_hidden() -> None:
    pred, depth, valid = maps()
    pred[valid.nonzero(as_tuple=True)[0][0]] = torch.nan
    assert torch.isnan(DepthLoss(LossConfig(auxiliary=()))(given(pred, []), depth, valid).total)


def test_without_valid_pixels_gradients_are_zero() -> None:
    pred, depth, valid = maps()
    pred.requires_grad_()
    loss = DepthLoss(LossConfig(gradient=1.0))(
        given(pred, [pred, pred]), depth, torch.zeros_like(valid)
    )
    torch.autograd.backward(loss.total)
    assert torch.isfinite(loss.total)
    assert pred.grad is not None
    assert (pred.grad == 0).all()


def test_a_perfect_prediction_costs_nothing_and_has_finite_gradients() -> None:
    _, depth, valid = maps()
    pred = depth.clone().requires_grad_()
    loss = DepthLoss(LossConfig(auxiliary=()))(given(pred, []), depth, valid)
    torch.autograd.backward(loss.total)
    assert loss.total.item() < 0.01
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()


def test_half_precision_predictions_are_taken() -> None:
    pred, depth, valid = maps()
    loss = DepthLoss(LossConfig())(given(pred.bfloat16(), [pred.half()] * 2), depth.float(), valid)
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(loss.total)


def test_a_loss_that_trains_no_output_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"silog, log_l1, .*, ssi_gradient: all are 0"):
        LossConfig(silog=0, ssim=0)


class Scale(nn.Module):
    """A prediction with one parameter for each column, so that gradients tell columns apart."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.8, 1.2, 22, dtype=torch.float64))

    def forward(self, pred: Tensor) -> Tensor:
        return pred * self.factor


CONFIG = LossConfig(gradient=0.5)


def both(share: tuple[float, float] = (0.9, 0.2)) -> list[Maps]:
    """Two processes' batches, very different in their number of valid pixels and scale."""
    near, far = (maps(seed, s, n=2) for seed, s in zip((1, 2), share, strict=True))
    return [near, (far[0] * 3, far[1], far[2])]


def run(model: nn.Module, batch: Maps) -> LossTerms:
    pred = model(batch[0])
    share_B = torch.tensor([1.0, 0.0] * (len(pred) // 2), dtype=torch.float64)
    terms = DepthLoss(CONFIG)(given(pred, [pred * 1.1, pred * 0.9]), batch[1], batch[2], share_B)
    torch.autograd.backward(terms.total)
    return terms


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = Scale()
    terms = run(nn.parallel.DistributedDataParallel(model), both()[rank])
    assert model.factor.grad is not None
    torch.save({"total": terms.total.detach(), "grad": model.factor.grad}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    model = Scale()
    joined = torch.cat([b[0] for b in both()]), torch.cat([b[1] for b in both()])
    terms = run(model, (*joined, torch.cat([b[2] for b in both()])))
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["total"], terms.total.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(got["grad"], model.factor.grad, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":  # one of the two processes
    one_process(int(sys.argv[1]), sys.argv[2])
