"""The loss and the validation error of heads of relative depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.maps.alignment import least_squares, normalised
from clipdepth_plugin.training.losses import DepthLoss, LossConfig
from clipdepth_plugin.training.terms.ssi import aligned_error, picture_moments
from clipdepth_plugin.training.terms.term import Truth, mean_from_moments
from clipdepth_plugin.training.validation import aligned_inverse, relative_errors

if TYPE_CHECKING:
    pass

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
