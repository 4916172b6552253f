"""Calls with arguments of any kind: errors of ours, or right answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from clipdepth_plugin import TowerFeatures, attach
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.geometry import depth_to_points
from tests.fuzz.running import NUMBERS, VALUES, fuzz
from tests.tiny.heads import small_head

SQUASH = Preprocessing((0.5,) * 3, (0.5,) * 3, (28, 28), "squash")


def _host() -> Any:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Dinov2Model(config).eval()


def test_plugin_calls() -> None:
    host: Any = _host()
    head = small_head(host)
    pixels = torch.zeros(2, 3, 28, 28)
    with attach(host, head, processor=SQUASH) as plugin:
        host(pixels)

        def check(drawn: tuple[str, dict[str, Any]]) -> None:
            kind, given = drawn
            try:
                if kind == "attach":
                    attach(_host(), head, **given).detach()
                    return
                maps = plugin.predict(**given)
            except ClipDepthError:
                return
            assert all(x.shape[-3] == 1 and x.dtype == torch.float32 for x in maps)

        cameras = st.one_of(VALUES, st.lists(NUMBERS, min_size=4, max_size=4))
        sizes = st.one_of(VALUES, st.lists(NUMBERS, min_size=2, max_size=2))
        arguments = {
            "size": sizes,
            "original_sizes": st.one_of(sizes, st.lists(sizes, min_size=2, max_size=2)),
            "intrinsics": st.one_of(cameras, st.lists(cameras, min_size=2, max_size=2)),
            "focal_px": VALUES,
        }
        attached = {"tower": VALUES, "processor": VALUES}
        fuzz(
            st.one_of(
                st.tuples(st.just("predict"), st.fixed_dictionaries({}, optional=arguments)),
                st.tuples(st.just("attach"), st.fixed_dictionaries({}, optional=attached)),
            ),
            check,
        )


def _tensors() -> st.SearchStrategy[Tensor]:
    kinds = (torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64)
    shapes = st.lists(st.integers(0, 5), max_size=4)
    return st.tuples(shapes, st.sampled_from(kinds)).map(
        lambda drawn: torch.ones(drawn[0], dtype=drawn[1])
    )


@pytest.mark.xfail(strict=False, reason="types of TowerFeatures and depth_to_points: unchecked")
def test_features_and_points() -> None:
    anything = st.one_of(_tensors(), VALUES)

    def check(drawn: tuple[str, list[Any]]) -> None:
        kind, given = drawn
        try:
            if kind == "features":
                levels, context, grid, pixels = given
                features = TowerFeatures(levels, context, grid, pixels)
                assert features.batch >= 0
                return
            points = depth_to_points(*given)
        except ClipDepthError:
            return
        assert points.shape[-3] == 3 or points.shape[-1] == 3

    levels = st.one_of(VALUES, st.dictionaries(st.integers(0, 3), anything, max_size=2))
    grid = st.one_of(VALUES, st.tuples(st.integers(-1, 3), st.integers(-1, 3)))
    optional = st.one_of(st.none(), anything)
    cameras = st.one_of(VALUES, st.lists(NUMBERS, min_size=4, max_size=4))
    fuzz(
        st.one_of(
            st.tuples(st.just("features"), st.tuples(levels, optional, grid, optional).map(list)),
            st.tuples(st.just("points"), st.tuples(_tensors(), cameras).map(list)),
        ),
        check,
    )
