"""The linear probe: exact where depth is linear in the tokens' logarithm of depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.ridge_predictor import RidgePredictor

PREPROCESSING = Preprocessing(*HALF_NORMALISATION, (32, 32), "squash")


def grey_samples(count: int) -> Sequence[Sample]:
    """Pictures whose depth is a function of their grey: farther is brighter."""
    samples = []
    for i in range(count):
        grey = torch.linspace(20 + 5 * i, 120 + 5 * i, 32)[None, None].expand(3, 32, 32)
        depth = torch.exp(grey[:1].float() / 100)
        samples.append(Sample(grey.to(torch.uint8), depth.contiguous(), None, f"grey/{i}"))
    return samples


def test_beats_a_constant_by_far(make_host: Callable[[str], nn.Module]) -> None:
    predict = RidgePredictor(choose_tower(make_host("timm")), PREPROCESSING, (0, 2), ridge=1e-4)
    done: list[int] = []
    predict.fit([grey_samples(24)[:12], grey_samples(24)[12:]], done.append)
    assert sum(done) == 24
    errors, spread = [], []
    for sample in grey_samples(24):
        (depth,) = predict([sample])
        assert depth.shape == (1, 32, 32)
        errors.append(((depth - sample.depth_1HW).abs() / sample.depth_1HW).mean().item())
        spread.append((sample.depth_1HW / sample.depth_1HW.median() - 1).abs().mean().item())
    assert max(errors) < 0.1 < min(spread)


def test_canonical_camera_tells_lenses_apart(make_host: Callable[[str], nn.Module]) -> None:
    """The same pictures through two lenses: only the focal length says which depth is true."""
    lenses = [16.0, 64.0]
    samples = [
        replace(
            sample,
            depth_1HW=sample.depth_1HW * lenses[i % 2] / 32,
            intrinsics=(lenses[i % 2], lenses[i % 2], 15.5, 15.5),
        )
        for i, sample in enumerate([one for one in grey_samples(12) for _ in lenses])
    ]
    errors = {}
    for canonical in (None, 32.0):
        tower = choose_tower(make_host("timm"))
        predict = RidgePredictor(
            tower, PREPROCESSING, (0, 2), ridge=1e-4, canonical_focal=canonical
        )
        predict.fit([samples])
        maps = predict(samples)
        ratios = [(m / s.depth_1HW).log().abs() for m, s in zip(maps, samples, strict=True)]
        errors[canonical] = torch.stack(ratios).mean().item()
    assert errors[32.0] < 0.05
    assert errors[None] > 0.5


def test_nothing_to_fit_on(make_host: Callable[[str], nn.Module]) -> None:
    predict = RidgePredictor(choose_tower(make_host("timm")), PREPROCESSING, (0,))
    empty = Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8), None, "empty")
    with pytest.raises(DataError, match="no picture with valid depth"):
        predict.fit([[empty]])
