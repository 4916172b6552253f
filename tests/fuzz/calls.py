"""Calls of the API with anything in place of each argument.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, HeadConfig, TowerFeatures, attach, find_towers
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.geometry import depth_to_points
from tests.fuzz.fuzz import Fuzz, clear_errors
from tests.fuzz.mutate import ANYTHING, NUMBERS
from tests.tiny.heads import small_head
from tests.tiny.table import BY_NAME

_SIZES = st.one_of(ANYTHING, st.lists(NUMBERS, min_size=2, max_size=2))
_CAMERAS = st.one_of(ANYTHING, st.lists(NUMBERS, min_size=4, max_size=4))


@functools.cache
def _plugin() -> DepthPlugin:
    """A plug-in on a tower that takes any size, after a pass of two views."""
    host = BY_NAME["dinov2"].host()
    head = small_head(host, canonical_focal=100.0, confidence=True)
    how = Preprocessing(size=(28, 28), mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash")
    plugin = attach(host, head, processor=how)
    torch.manual_seed(0)
    host(torch.randn(2, 3, 28, 28))
    return plugin


def _is_depth(maps: Tensor | list[Tensor]) -> None:
    for map_1HW in maps:
        known = map_1HW[~map_1HW.isnan()]
        assert bool((known > 0).all())
        assert bool(known.isfinite().all())


def _call(function: Callable[[], Any], check: Callable[[Any], object] = lambda _: None) -> None:
    with clear_errors():
        check(function())


def _points(drawn: tuple[Any, Any]) -> None:
    def right(points_HW3: Tensor) -> None:
        assert points_HW3.is_floating_point()
        assert points_HW3.shape[-1] == 3
        z_HW = points_HW3[..., 2]
        depth_HW = drawn[0][0].to(z_HW.dtype)
        assert torch.equal(z_HW.nan_to_num(), depth_HW.nan_to_num())

    _call(lambda: depth_to_points(*drawn), right)


def _predict(options: dict[str, Any]) -> None:
    _call(lambda: _plugin().predict(**options), _is_depth)


def _features(drawn: tuple[Any, Any, Any, Any]) -> None:
    def right(features: TowerFeatures) -> None:
        for x_BND in features.levels.values():
            assert x_BND.shape[:2] == (features.batch, features.grid[0] * features.grid[1])

    _call(lambda: TowerFeatures(*drawn), right)


def _head(options: dict[str, Any]) -> None:
    def right(head: DepthHead) -> None:
        assert head.config.width == 32

    host = BY_NAME["dinov2"].host()
    with torch.device("meta"):
        _call(lambda: DepthHead.for_host(host, **{"film_hidden": 4, **options}), right)


def _head_config(options: dict[str, Any]) -> None:
    with clear_errors(ValidationError):
        HeadConfig(**{"width": 8, **options})


def _attach(options: dict[str, Any]) -> None:
    host = BY_NAME["dinov2"].host()
    head = small_head(host)

    def right(plugin: DepthPlugin) -> None:
        plugin.detach()

    _call(lambda: attach(**{"host": host, "head": head, **options}), right)
    assert not any(module._forward_hooks for module in host.modules())


def _find(host: Any) -> None:
    _call(lambda: find_towers(host))


_FIELDS = st.dictionaries(st.sampled_from(sorted(HeadConfig.model_fields)), ANYTHING, max_size=3)
_GRIDS = st.one_of(st.just((2, 2)), _SIZES)
_LEVELS = st.one_of(
    ANYTHING,
    st.dictionaries(
        st.one_of(st.integers(0, 3), ANYTHING.filter(lambda x: x.__hash__ is not None)),
        st.one_of(st.just(torch.ones(2, 4, 8)), ANYTHING),
        max_size=3,
    ),
)
_MAPS = st.one_of(st.just(torch.ones(1, 4, 5)), st.just(torch.ones(1, 4, 5).long()), ANYTHING)
_HOSTS = st.one_of(ANYTHING, st.just(nn.Linear(2, 2)), st.just(nn.Module()))


def _some(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these arguments, the others left out."""
    return st.fixed_dictionaries({}, optional=strategies)


FUZZES = (
    Fuzz("depth_to_points", st.tuples(_MAPS, _CAMERAS), _points, 200),
    Fuzz(
        "predict",
        _some(size=_SIZES, original_sizes=_SIZES, intrinsics=_CAMERAS, focal_px=ANYTHING),
        _predict,
        250,
    ),
    Fuzz("pixels", ANYTHING, lambda x: _call(lambda: _plugin()(x), _is_depth), 150),
    Fuzz("TowerFeatures", st.tuples(_LEVELS, ANYTHING, _GRIDS, ANYTHING), _features, 250),
    Fuzz("for_host", _FIELDS, _head, 80),
    Fuzz("HeadConfig", _FIELDS, _head_config, 150),
    Fuzz(
        "attach",
        _some(
            host=_HOSTS,
            head=ANYTHING,
            tower=ANYTHING,
            processor=ANYTHING,
            trim=st.booleans(),
            other_tower=st.booleans(),
        ),
        _attach,
        80,
    ),
    Fuzz("find_towers", _HOSTS, _find, 40),
)
