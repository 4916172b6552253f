"""The ridge probe: tokens of all levels, patches, closed form, ranking."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.adapters.taps import owners
from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation import patches as patches_module
from clipdepth_plugin.evaluation.layers import rank_levels
from clipdepth_plugin.evaluation.patches import PatchReader, patch_log_depth, split_samples
from clipdepth_plugin.evaluation.ridge import RidgeSums

PREPROCESSING = Preprocessing(*HALF_NORMALISATION, size=(32, 32), resize="squash")
WIDTH, DEPTH = 16, 4


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return choose_tower(CLIPVisionModel(config).eval())


class Pictures:
    """Random pictures; their names make two pictures one sequence."""

    def __init__(self, count: int = 20, per_sequence: int = 2) -> None:
        g = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
        self.depths = torch.rand(count, 1, 32, 32, generator=g) + 0.5
        self.per_sequence = per_sequence
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"set/train/{index // self.per_sequence}/{index}"

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return Sample(self.images[index], self.depths[index], None, self.name(index))


class Stream:
    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __iter__(self) -> Iterator[Sample]:
        return (self.pictures[i] for i in range(len(self.pictures)))


def test_all_levels_are_the_towers_hidden_states(tower: Tower) -> None:
    samples = [Pictures()[index] for index in range(2)]
    ((features, _),) = PatchReader(tower, PREPROCESSING, None).tokens(samples)
    with torch.no_grad():
        pixels_B3HW = to_pixels([one.picture for one in samples], PREPROCESSING)
        out = tower.module(pixels_B3HW, output_hidden_states=True)
    assert list(features.levels) == list(range(DEPTH + 1))
    for level, expected in enumerate(out.hidden_states):
        torch.testing.assert_close(features.levels[level], expected[:, 1:])
    assert not owners(tower)


def test_patch_depth_is_the_mean_log_of_valid_pixels() -> None:
    depth = torch.rand(7, 10, generator=torch.Generator().manual_seed(0)) + 0.5
    depth[:, 3] = 0
    depth[:4, 5:] = torch.nan
    got = patch_log_depth(depth, (2, 2), patch_size=(8, 8), pixel_size=(16, 16)).view(2, 2)
    for i, rows in enumerate((slice(0, 4), slice(4, 7))):
        for j, columns in enumerate((slice(0, 5), slice(5, 10))):
            inside = depth[rows, columns].double()
            inside = inside[inside > 0]
            expected = inside.log().mean()
            torch.testing.assert_close(got[i, j], expected, equal_nan=True)
    assert got[0, 1].isnan()


def test_depth_beyond_the_last_patch_is_of_none() -> None:
    """An input of 20 x 20 whose last 4 rows and columns no patch of 8 covers."""
    depth = torch.full((40, 60), 9.0)
    depth[:32, :48] = 2.0
    got = patch_log_depth(depth, (2, 2), patch_size=(8, 8), pixel_size=(20, 20))
    torch.testing.assert_close(got.exp(), torch.full((4,), 2.0).double())


def numpy_ridge(x: Tensor, y: Tensor, ridge: float, at: Tensor) -> Tensor:
    """Least squares on standardised features with the penalty as extra rows."""
    a, b = x.double().numpy(), y.double().numpy()
    mean, std = a.mean(0), a.std(0)
    std[std == 0] = 1
    z = (a - mean) / std
    rows = np.vstack([z, np.sqrt(ridge * len(b)) * np.eye(z.shape[1])])
    w = np.linalg.lstsq(rows, np.concatenate([b - b.mean(), np.zeros(z.shape[1])]))[0]
    return torch.from_numpy((at.double().numpy() - mean) / std @ w + b.mean())


@pytest.mark.parametrize("blocks", [(0,), (2, 0)])
def test_streamed_ridge_is_least_squares(blocks: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 3, 5, generator=g) * torch.rand(3, 5, generator=g) * 9 + 20
    x[:, 0, 1] = 7.0  # never varies
    y = x[:, 2, 0] + torch.randn(90, generator=g)
    sums = RidgeSums(3, 5)
    for part in (slice(0, 40), slice(40, 90)):
        sums.add(x[part], y[part])
    weights, bias = sums.fit(blocks, 0.01)
    got = torch.einsum("mlk,lk->m", x[:7, list(blocks)].double(), weights) + bias
    columns = x[:, list(blocks)].flatten(1)
    torch.testing.assert_close(got, numpy_ridge(columns, y, 0.01, columns[:7]))


def test_a_penalty_too_small_for_dependent_features_is_named() -> None:
    g = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(3, 1, 40, generator=g)  # of 40 features only two can vary on their own
    sums = RidgeSums(1, 40)
    sums.add(x, torch.randn(3, generator=g))
    with pytest.raises(DataError, match="--ridge 1e-09 is too small"):
        sums.fit((0,), 1e-9)
    assert torch.isfinite(sums.fit((0,), 1e-2)[0]).all()


def test_sequences_are_never_split() -> None:
    fitted, held, split = split_samples(Pictures(), None, 100)
    assert split == "sequence"
    parts = ([part[i] for i in range(len(part))] for part in (fitted, held))
    names = [{s.name.rpartition("/")[0] for s in part} for part in parts]
    assert names[1] == {"set/train/4", "set/train/9"}
    assert not names[0] & names[1]
    assert len(fitted) + len(held) == 20


def test_of_few_sequences_the_last_pictures_are_held_out() -> None:
    pictures = Pictures(per_sequence=100)
    fitted, held, split = split_samples(pictures, None, 10)
    assert split == "tail"
    assert not pictures.read
    assert [held[i].name.rpartition("/")[2] for i in range(len(held))] == ["16", "18"]
    assert len(fitted) == 8


def test_streams_give_their_first_pictures() -> None:
    pictures = Pictures()
    fitted, held, split = split_samples(Stream(pictures), Pictures(3), 7)
    assert (len(fitted), len(held), split) == (7, 3, "given")
    assert pictures.read == list(range(7))
    with pytest.raises(DataError, match="1 pictures: too few"):
        split_samples(Pictures(1), None, 5)


def test_the_level_that_holds_the_depth_is_found(tower: Tower) -> None:
    """Depth is made from level 2's tokens (and a little of level 4's), so these must be chosen."""
    pictures = Pictures(60)
    ((tokens, _),) = PatchReader(tower, PREPROCESSING, None).tokens(
        [pictures[i] for i in range(60)]
    )
    direction = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    log = tokens.levels[2] @ direction[0] + 0.2 * tokens.levels[4] @ direction[1]
    log = (log / log.std()).view(60, 1, 4, 4)
    pictures.depths = log.exp().repeat_interleave(8, 2).repeat_interleave(8, 3)
    done: list[tuple[int, int]] = []
    ranking = rank_levels(
        PatchReader(tower, PREPROCESSING, None),
        pictures,
        ridge=1e-6,
        stages=2,
        advance=lambda *count: done.append(count),
    )
    assert ranking.singles[0].levels == (2,)
    assert ranking.steps[0].levels == (2,)
    assert ranking.steps[1].levels == (2, 4)
    assert ranking.steps[1].rmse_log < 1e-3 < ranking.steps[0].rmse_log
    assert ranking.steps[0].rmse_log < ranking.constant.rmse_log
    assert ranking.semantic == (4, 2)
    assert len(ranking.structural) == 1
    assert ranking.presets["spaceclip"].levels == (0, 1, 2, 3, 4)
    assert ranking.images == (48, 12)
    assert ranking.patches == (48 * 16, 12 * 16)
    assert (ranking.features, ranking.split) == (WIDTH, "sequence")
    assert sum(count for count, _ in done) == done[-1][1] == 60


def test_wide_towers_are_projected(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "MAX_FEATURES", 8 * (DEPTH + 1))
    reader = PatchReader(tower, PREPROCESSING, 5)
    (_, x_NLK, y_N), *_ = reader.read([Pictures()[0]])
    assert x_NLK.shape == (5, DEPTH + 1, 8)
    assert y_N.shape == (5,)


def test_pictures_without_depth_are_no_data(tower: Tower) -> None:
    pictures = Pictures(4)
    pictures.depths.zero_()
    with pytest.raises(DataError, match="0 training and 0 validation patches"):
        rank_levels(PatchReader(tower, PREPROCESSING), pictures)
