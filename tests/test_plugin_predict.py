"""``plugin.predict``: sizes, the user's images, cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import (
    HeadMismatchError,
    HostError,
)
from clipdepth_plugin.features import one_size
from tests.tiny.heads import with_config

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


SQUASH = Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), "squash")


def test_predict_sizes(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head, processor=SQUASH) as plugin, plugin.capture() as seen:
        host(make_pixels())
        features = one_size(seen[0].features)
        other = plugin.predict((20, 50))
        assert isinstance(other, Tensor)
        torch.testing.assert_close(other, head(features, (20, 50)).detach())
        maps = plugin.predict(original_sizes=[(10, 20), (33, 7)])
        assert [tuple(m.shape) for m in maps] == [(1, 10, 20), (1, 33, 7)]
        one_for_all = plugin.predict(original_sizes=(10, 20))
        assert torch.equal(one_for_all[0], maps[0])


def test_predict_takes_the_camera_into_account(
    host: nn.Module,
    head: DepthHead,
    make_pixels: MakePixels,
    caplog: pytest.LogCaptureFixture,
) -> None:
    canonical = with_config(head, canonical_focal=40.0)
    canonical.load_state_dict(head.state_dict())
    with attach(host, canonical, processor=SQUASH) as plugin:
        host(make_pixels())
        plain = plugin.depth
        wide = plugin.predict(focal_px=20.0)
        torch.testing.assert_close(wide, plain / 2)
        # The same camera, given in pixels of a picture twice as large as the tower's input.
        maps = plugin.predict(original_sizes=(64, 64), intrinsics=(40.0, 40.0, 31.5, 31.5))
        expected = plugin.predict(original_sizes=(64, 64))
        torch.testing.assert_close(maps[0], expected[0] / 2)
        each = plugin.predict(focal_px=[20.0, 80.0])
        assert isinstance(each, Tensor)
        torch.testing.assert_close(each[1], plain[1] * 2)
        some = plugin.predict(focal_px=[20.0, None])
        assert torch.equal(some[1], plain[1])
        for read in (lambda: plugin.depth, plugin.predict):
            read()
        # At the level that is seen without any set-up, and not for each frame.
        assert caplog.text.count("no camera given: the metres are those of a focal length") == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"focal_px": 20.0}, HeadMismatchError, "trained without a canonical camera"),
        ({"size": (4, 4), "original_sizes": (4, 4)}, HostError, "give one"),
        ({"original_sizes": [(4, 4)]}, HostError, r"has 2 views .* squashed: \[1\] views"),
        ({"original_sizes": (0, 4)}, HostError, r"expected \(height, width\)"),
        ({"focal_px": 1.0, "intrinsics": (1.0, 1.0, 0.0, 0.0)}, HostError, "give one"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_predict_refuses(
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    host: nn.Module,
    head: DepthHead,
    make_pixels: MakePixels,
) -> None:
    with attach(host, head, processor=SQUASH) as plugin:
        host(make_pixels())
        with pytest.raises(error, match=message):
            plugin.predict(**arguments)


def test_original_sizes_need_the_hosts_preprocessing(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin:
        host(make_pixels())
        with pytest.raises(HostError, match=r"attach\(\.\.\., processor=\.\.\.\)"):
            plugin.predict(original_sizes=(64, 64))
    with attach(host, head, processor=SQUASH) as plugin:
        host(make_pixels(size=(40, 40)))
        with pytest.raises(HostError, match=r"views of \[\(40, 40\)\].* views of \[\(32, 32\)\]"):
            plugin.predict(original_sizes=(64, 64))
