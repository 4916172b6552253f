"""Forms of operations that onnxruntime runs faster: the same numbers, and where they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from clipdepth_plugin.exporting.forms import pixel_shuffle, with_fast_forms


@pytest.mark.parametrize(
    ("shape", "factor"), [((1, 8, 3, 5), 2), ((3, 16, 4, 1), 4), ((2, 18, 1, 2), 3)]
)
def test_pixel_shuffle_by_transposes(shape: tuple[int, ...], factor: int) -> None:
    x = torch.randn(shape)
    for one in (x, x.to(memory_format=torch.channels_last)):
        expected = nn.functional.pixel_shuffle(one, factor)
        assert torch.equal(pixel_shuffle(one, factor), expected)


class Cut(nn.Module):
    """Tokens without the first ones, through a norm, a cast and a projection."""

    def __init__(self, dropped: int, normed: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(normed)
        self.project = nn.Linear(8, 4)
        self.dropped = dropped

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        cut = x_BTD[:, self.dropped :]
        return self.project(self.norm(cut).to(torch.float32)), self.project(cut) + cut.mean()


@pytest.mark.parametrize(
    ("module", "tokens_cut"),
    [
        (Cut(1), [8, 4, 4]),  # the mean keeps the wide one
        (Cut(7), [8]),  # most of the tokens would be computed in vain
        (Cut(1, (7, 8)), [8, 4]),  # a norm over the tokens, too
    ],
)
@torch.no_grad()
def test_few_tokens_are_cut_off_when_narrow(module: Cut, tokens_cut: list[int]) -> None:
    x = torch.randn(2, 8, 8)
    axes = ({0: Dim("batch", min=1, max=4)},)
    program = torch.export.export(module, (x,), dynamic_shapes=axes)
    changed = torch.export.export(with_fast_forms(program.module()), (x,), dynamic_shapes=axes)
    slices = [
        node.meta["val"].shape[-1]
        for node in changed.graph.nodes
        if node.target == torch.ops.aten.slice.Tensor
    ]
    assert sorted(slices, reverse=True) == tokens_cut
    for count in (1, 3):
        y = torch.randn(count, 8, 8)
        torch.testing.assert_close(changed.module()(y), module(y))
