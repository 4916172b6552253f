"""plugin.tokens(): depth, confidence and points at patches, in the order of the host's tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.connector_rows import rows_of_views
from clipdepth_plugin.adapters.connectors import find_connector
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.features import one_size
from clipdepth_plugin.geometry import depth_to_points
from tests.tiny.case import PATCH
from tests.tiny.coordinates import present
from tests.tiny.heads import small_head
from tests.tiny.table import BY_NAME

CAMERA = (30.0, 28.0, 15.0, 17.0)
ROWS = (
    *("llava", "llava_next", "vip_llava", "paligemma", "gemma3", "smolvlm", "idefics3"),
    *("internvl", "aya_vision", "cohere2_vision", "pi0", "lerobot_pi0", "lerobot_smolvla"),
)
PACKED = (*("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "smolvlm", "mistral3", "paddleocr_vl"),)
REFUSED = {
    "blip2": "attend",
    "idefics2": "no connector",
    "janus": "several",
    "dinov2": "tower alone",
}


def let_patches_alone(tower: Tower) -> None:
    """Makes blocks add nothing, so that a token is of its own patch and no other."""
    for block in tower.blocks:
        for parameter in block.parameters():
            nn.init.zeros_(parameter)


def batched(tokens: Tensor | list[Tensor]) -> Tensor:
    """Of a pass whose views are of one size."""
    assert isinstance(tokens, Tensor)
    return tokens


def close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("preset", ["fast", "spaceclip"])
@pytest.mark.parametrize("merge", [1, 2, (2, 1)])
def test_a_token_is_its_patch_of_the_native_map(
    host: nn.Module, make_pixels: Any, preset: str, merge: Any
) -> None:
    options: dict[str, Any] = {"channels": (16, 8, 8)} if preset == "fast" else {}
    levels = {"structural_levels": (2, 1, 0), "context": "mean"}
    head = small_head(host, preset=preset, confidence=True, **levels, **options)
    pixels = make_pixels()
    with torch.no_grad(), attach(host, head) as plugin, plugin.capture() as seen:
        host(pixels)
        native = head.estimate(one_size(plugin.features(pixels)))
        tokens_BN5 = batched(plugin.tokens(merge, intrinsics=CAMERA))
        close(tokens_BN5, batched(seen[0].tokens(merge, intrinsics=CAMERA)), 0)
        depth = plugin.depth
        sure = plugin.confidence
    mh, mw = merge if isinstance(merge, tuple) else (merge, merge)
    h, w = 4 // mh, 4 // mw
    assert tokens_BN5.shape == (2, h * w, 5)
    assert tokens_BN5.dtype == torch.float32
    kernel = native.depth.shape[2] // h, native.depth.shape[3] // w
    pool = nn.functional.avg_pool2d
    close(tokens_BN5[..., 0], pool(native.depth.log(), kernel).exp().flatten(1))
    # The resized map's patches have the same means but for what is interpolated over their edges.
    close(tokens_BN5[..., 0], pool(depth.log(), (8 * mh, 8 * mw)).exp().flatten(1), 0.05)
    close(tokens_BN5[..., 1], pool(sure, (8 * mh, 8 * mw)).flatten(1), 0.05)
    for view, depth_N in enumerate(tokens_BN5[..., 0]):
        flat_1HW = torch.kron(depth_N.view(1, h, w), torch.ones(1, 8 * mh, 8 * mw))
        points_HW3 = depth_to_points(flat_1HW, CAMERA)
        middles = points_HW3.unflatten(0, (h, -1)).unflatten(2, (w, -1)).mean(dim=(1, 3))
        close(tokens_BN5[view, :, 2:], middles.flatten(0, 1))


@pytest.mark.parametrize("name", ROWS)
def test_order_is_that_of_the_hosts_own_tokens(name: str) -> None:
    """A patch that changes changes the one visual token which is said to be its."""
    case = BY_NAME[name]
    if case.absent:
        pytest.skip("this transformers lacks it")
    host = case.host()
    tower = choose_tower(host, case.choose)
    let_patches_alone(tower)
    connector = find_connector(host, tower)
    nn.init.normal_(next(connector.module.parameters()))  # Gemma 3's begins at zero
    given: list[Tensor] = []
    connector.module.register_forward_hook(lambda *args: given.append(args[-1].detach()))
    pixels = case.pixels()
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        with plugin.capture() as seen:
            case.run(host, pixels)
        alone = given[0]
        rows = rows_of_views(seen[0], connector, alone.shape[:-1])[0]
        side = connector.merge or 1
        tokens = batched(seen[0].tokens("host", intrinsics=CAMERA))
        assert tokens.shape[:2] == rows.shape
        for cell in range(rows.shape[1]):
            middle = tokens[-1, cell, 2:4] / tokens[-1, cell, 4]
            u, v = middle * torch.tensor(CAMERA[:2]) + torch.tensor(CAMERA[2:])
            y, x = int(v) // (side * PATCH), int(u) // (side * PATCH)
            changed = pixels.clone()
            top, left, size = y * side * PATCH, x * side * PATCH, side * PATCH
            patch = torch.rand(3, size, size)
            changed[len(rows) - 1, :, top : top + size, left : left + size] = patch
            given.clear()
            case.run(host, changed)
            moved = (given[0] - alone).abs().amax(dim=-1).flatten() > 1e-6
            assert moved.nonzero().flatten().tolist() == [int(rows[-1, cell])]


@pytest.mark.parametrize("name", PACKED)
def test_order_of_packed_hosts(name: str) -> None:
    """The same where pictures of several sizes are packed: window order, merge squares, padding."""
    case = present(name)
    host = case.host()
    tower = choose_tower(host)
    let_patches_alone(tower)
    connector = find_connector(host, tower)
    given: list[Tensor] = []
    connector.module.register_forward_hook(lambda *args: given.append(args[-1].detach()))
    pictures = case.pictures()
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        with plugin.capture() as seen:
            case.run(host, case.pack(pictures))
        alone = given[0]
        rows = [row for run in rows_of_views(seen[0], connector, alone.shape[:-1]) for row in run]
        tokens = list(seen[0].tokens("host"))
        assert [len(one) for one in tokens] == [len(row) for row in rows]
        side = (connector.merge or 1) * PATCH
        for view in (0, len(rows) - 1):
            columns = case.views[view][3][1] * PATCH // side
            picture, top, left, _ = case.views[view]
            for cell in (0, len(rows[view]) // 2, len(rows[view]) - 1):
                y, x = cell // columns * side + top * PATCH, cell % columns * side + left * PATCH
                changed = [one.clone() for one in pictures]
                changed[picture][:, y : y + side, x : x + side] = torch.rand(3, side, side)
                given.clear()
                case.run(host, case.pack(changed))
                moved = (given[0] - alone).abs().amax(dim=-1).flatten() > 1e-6
                assert moved.nonzero().flatten().tolist() == [int(rows[view][cell])]


@pytest.mark.parametrize("name", REFUSED)
def test_hosts_without_tokens_of_patches_are_refused(name: str, make_pixels: Any) -> None:
    case = BY_NAME[name]
    host = case.host()
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        case.run(host, case.pixels())
        plugin.tokens()
        with pytest.raises(HostError, match=REFUSED[name]):
            plugin.tokens("host")


def test_what_is_not_known_is_nan(host: nn.Module, make_pixels: Any) -> None:
    pixels = make_pixels()
    pixels[1] = -1.0  # as policies fill a missing camera in
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        host(pixels)
        tokens_BN5 = batched(plugin.tokens())
        seen_BN5 = batched(plugin.tokens(focal_px=[30.0, None]))
    assert tokens_BN5[0, :, 0].isfinite().all()
    assert tokens_BN5[0, :, 1:].isnan().all()
    assert tokens_BN5[1].isnan().all()
    assert seen_BN5[0, :, 2:].isfinite().all()
    assert seen_BN5[1].isnan().all()


def test_metres_and_points_follow_the_camera_of_a_canonical_head(
    host: nn.Module, make_pixels: Any
) -> None:
    head = small_head(host, context="mean", canonical_focal=40.0, input_size=(32, 32))
    with torch.no_grad(), attach(host, head) as plugin:
        host(make_pixels())
        assumed, doubled = map(batched, (plugin.tokens(), plugin.tokens(focal_px=80.0)))
    close(doubled[..., 0], 2 * assumed[..., 0])
    close(doubled[..., 4], doubled[..., 0])
    close(doubled[..., 2:4], assumed[..., 2:4])  # twice as far in a lens of half the angle


def test_padding_is_nan_and_cameras_are_the_users(host: nn.Module, make_pixels: Any) -> None:
    """A picture of 480 x 640, resized to 24 x 32 and padded above, as SmolVLA pads."""
    ways = Preprocessing(*HALF_NORMALISATION, (32, 32), "fit_end")
    head = small_head(host, context="mean")
    with torch.no_grad(), attach(host, head, processor=ways) as plugin:
        host(make_pixels())
        camera = (600.0, 600.0, 319.5, 239.5)
        tokens = batched(plugin.tokens(original_sizes=(480, 640), intrinsics=camera))
        merged = batched(plugin.tokens(2, original_sizes=(480, 640), intrinsics=camera))
        whole = batched(plugin.tokens(intrinsics=(30.0, 30.0, 15.5, 19.5)))
        native_B1HW = head(one_size(plugin.features(make_pixels()))).log()
    assert tokens[:, :4].isnan().all()
    close(tokens[:, 4:], whole[:, 4:])
    # Half of the upper tokens' pixels is padding: the mean is of the others.
    half = native_B1HW.shape[-1] // 4
    below = native_B1HW[..., half : 2 * half, : 2 * half].mean(dim=(1, 2, 3)).exp()
    close(merged[:, 0, 0], below)


def test_relative_depth_has_no_points(host: nn.Module, make_pixels: Any) -> None:
    head = small_head(host, context="mean", metric=False)
    with torch.no_grad(), attach(host, head) as plugin:
        host(make_pixels())
        tokens = batched(plugin.tokens())
        assert tokens[..., 2:].isnan().all()
        with pytest.raises(HeadMismatchError, match="relative"):
            plugin.tokens(focal_px=30.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"merge": 3}, "is not made of 3 x 3"),
        ({"merge": (1, 8)}, "is not made of 1 x 8"),
        ({"merge": 0}, "merge: got 0"),
        ({"merge": -1}, "merge: got -1"),
        ({"merge": True}, "merge"),
        ({"merge": "hosts"}, "merge: 'hosts'"),
        ({"merge": (2.5, 2)}, "merge"),
        ({"intrinsics": CAMERA, "focal_px": 3.0}, "give one"),
        ({"intrinsics": [CAMERA] * 3}, "3 given for 2"),
        ({"focal_px": 0.001}, "as no lens does"),
    ],
)
def test_what_is_refused(
    host: nn.Module, head: DepthHead, make_pixels: Any, arguments: Any, said: str
) -> None:
    with torch.no_grad(), attach(host, head) as plugin:
        with pytest.raises(NoDepthError, match="no tower pass"):
            plugin.tokens()
        host(make_pixels())
        with pytest.raises(HostError, match=said):
            plugin.tokens(**arguments)
