"""torch.set_default_dtype, as engines set it for a while, changes no map: all are float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.maps.stitching import stitch
from tests.tiny.heads import small_head

CAMERA = (30.0, 28.0, 15.0, 17.0)
NAN = float("nan")


def resized(_: DepthPlugin) -> Tensor:
    rule = Preprocessing((0.5,) * 3, (0.5,) * 3, (96, 96), "shortest")
    return rule.whole_view((300, 960)).to_image(
        torch.rand(1, 8, 8, generator=seeded(), dtype=torch.float32)
    )


def stitched(_: DepthPlugin) -> Tensor:
    tile_1HW = 1 + torch.rand(1, 40, 40, generator=seeded(), dtype=torch.float32)
    tile_1HW[:, :, 30:] = NAN
    return stitch([tile_1HW], tile_1HW.nan_to_num(2.0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


READ: dict[str, Callable[[DepthPlugin], Any]] = {
    "depth": lambda plugin: plugin.depth,
    "predict": lambda plugin: plugin.predict(size=(50, 70)),
    "tokens": lambda plugin: plugin.tokens(intrinsics=CAMERA),
    "stream": lambda plugin: plugin.stream("wrist").depth,
    "no pictures": lambda plugin: plugin(torch.zeros(0, 3, 32, 32, dtype=torch.float32)),
    "resized": resized,
    "stitched": stitched,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_maps_are_float32_whatever_the_default_is(
    name: str, dtype: torch.dtype, host: nn.Module, make_pixels: Any
) -> None:
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        host(make_pixels())
        expected = READ[name](plugin)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            found = READ[name](plugin)
        finally:
            torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
