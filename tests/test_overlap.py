"""attach(..., overlap=True): the head beside its host; every wait is there, and no bit changes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, attach
from clipdepth_plugin.errors import NoDepthError
from tests.tiny.case import tensors
from tests.tiny.streams import FakeDevice, FakeStream, FakeStreams, overlap_of, overlapped
from tests.tiny.table import BY_NAME

MakePixels = Callable[..., Tensor]
COMPACT: dict[str, Any] = {"channels": (16, 12, 8)}
HEADS: dict[str, dict[str, Any]] = {
    "spaceclip": {},
    "mean context": {"context": "mean"},
    "no FiLM": {"film": False},
    "no structural pathway": {"structural": False},
    "structural levels last": {"structural_levels": (4, 1, 0)},
    "fast with confidence": {"preset": "fast", "confidence": True, **COMPACT},
    "guided": {"preset": "guided", "stem_channels": 4, **COMPACT},
}


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", HEADS)
def test_every_wait_is_there_and_no_bit_changes(
    name: str,
    fused: bool,
    host: nn.Module,
    make_head: Callable[..., DepthHead],
    make_pixels: MakePixels,
    device: FakeDevice,
) -> None:
    x, plain = make_pixels(), make_head(host, **HEADS[name])
    head = plain.fused() if fused else plain
    with torch.no_grad(), attach(host, head) as plugin:
        alone = tensors(host(x))
        expected = plugin.depth
        sure = plugin.confidence if plain.config.confidence else None
    with overlapped(host, head, device) as plugin, device:
        outputs = tensors(host(x))
        log, count = list(device.log), device.log.count("side op")
        depth = plugin.depth
        if sure is not None:
            assert torch.equal(plugin.confidence, sure)
    assert all(map(torch.equal, outputs, alone))
    assert torch.equal(depth, expected)
    assert overlap_of(plugin).passes == 1
    assert device.races == []
    assert device.untold == 0
    assert "host waits" not in log, "the host waits for nothing"
    assert device.log.count("side op") == count > 0, "reading runs nothing more of the head"
    first = log.index("side op")
    if plain.early_levels and max(plain.early_levels) < 4:
        done = max(plain.early_levels)
        assert log.index(f"block {done}") < first < log.index(f"block {done + 1}")
    else:
        assert first > log.index("block 4")


@pytest.mark.parametrize("beside", [False, True], ids=["when read", "beside"])
def test_an_autocast_of_the_readers_changes_no_bit(
    beside: bool, host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """The tower runs under it in each case: the tokens are the same."""
    x, depths = make_pixels(), []
    with overlapped(host, head, device) as plugin:
        overlap_of(plugin).streams.serving = beside
        for outside in (False, True):
            with torch.autocast("cpu", torch.bfloat16):
                host(x)
                if not outside:
                    depths.append(plugin.depth)
            if outside:
                depths.append(plugin.depth)
        assert overlap_of(plugin).passes == (2 if beside else 0)
    assert torch.equal(*depths)


def test_a_head_that_has_moved_is_waited_for_where_its_maps_are(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    asked: list[torch.device] = []

    class Asked(FakeStreams):
        def current(self, device: torch.device) -> FakeStream:
            asked.append(device)
            return super().current(device)

    with overlapped(host, head, device) as plugin:
        overlap_of(plugin).streams = Asked(device)
        host(make_pixels())
        beside: Any = plugin._last()._beside
        expected = [one.metres for one in beside._estimates]
        asked.clear()
        head.to("meta")
        assert torch.equal(plugin._last()._metres()[0], expected[0])
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize("leave_out", ["the side stream's wait", "the reader's wait"])
def test_a_missing_wait_is_seen(
    leave_out: str, host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """The test above can fail."""
    with overlapped(host, head, device, leave_out) as plugin, device:
        host(make_pixels())
        _ = plugin.depth
    late = "host" if leave_out == "the reader's wait" else "side"
    assert device.races
    assert all(f"on {late} " in race for race in device.races)


def test_an_allocator_that_does_not_know_is_seen(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    with overlapped(host, head, device, "the allocator") as plugin, device:
        host(make_pixels())
        _ = plugin.depth
    assert device.untold > len(head.config.levels)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tokens_that_the_host_writes_into(
    mode: Any, host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """Noticed, though the head has begun; in inference mode copies were tapped."""

    def spoil(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].mul_(2)

    with overlapped(host, head, device) as plugin, mode(), device:
        plugin.tower.blocks[3].register_forward_pre_hook(spoil)
        host(make_pixels())
        if mode is torch.no_grad:
            with pytest.raises(NoDepthError, match="written into in place"):
                _ = plugin.depth
        else:
            assert plugin.depth.isfinite().all()
            assert not plugin.depth.is_inference()
            assert device.races == []
            assert device.untold == 0


@pytest.mark.parametrize("what", ["parameter", "buffer"])
def test_weights_that_are_written_into_before_reading(
    what: str, host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """The head may still be reading them; once depth has been read, it is not."""
    weights = list(head.parameters() if what == "parameter" else head.buffers())
    with overlapped(host, head, device) as plugin:
        host(make_pixels())
        weights[-1].add_(1)
        for _ in range(2):
            with pytest.raises(NoDepthError, match="weights were changed while"):
                _ = plugin.depth
        host(make_pixels())
        depth = plugin.depth
        weights[-1].add_(1)
        assert torch.equal(plugin.depth, depth)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hooked_head_runs_as_a_whole(
    kind: str, host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """What a hook makes of the features is what both pathways read."""

    def doubled(_module: nn.Module, args: tuple[TowerFeatures, ...]) -> tuple[TowerFeatures, ...]:
        levels = {level: 2 * x_BND for level, x_BND in args[0].levels.items()}
        return (TowerFeatures(levels, args[0].context, args[0].grid), *args[1:])

    def double(_module: nn.Module, _args: Any, depth_B1HW: Tensor) -> Tensor:
        return 2 * depth_B1HW

    if kind == "pre":
        head.register_forward_pre_hook(doubled)
    else:
        head.register_forward_hook(double)
    with attach(host, head) as plugin, torch.no_grad():
        host(make_pixels())
        expected = plugin.depth
    with overlapped(host, head, device) as plugin, device:
        host(make_pixels())
        assert device.log.index("side op") > device.log.index("block 4")
        assert torch.equal(plugin.depth, expected)
    assert (overlap_of(plugin).passes, device.races, device.untold) == (1, [], 0)


def test_tiles_run_beside_the_host(make_head: Callable[..., DepthHead], device: FakeDevice) -> None:
    """Tiles are views like others; they are joined when a map is asked for."""
    case = BY_NAME["llava_next"]
    assert case.inputs is not None
    host, x = case.host(), case.pixels()
    head = make_head(host)
    with attach(host, head) as plugin, torch.no_grad():
        case.run(host, x)
        expected = plugin.depth
    with overlapped(host, head, device) as plugin, device:
        case.run(host, x)
        assert torch.equal(plugin.depth, expected)
    assert overlap_of(plugin).passes == case.passes
    assert device.races == []


def test_two_plugins_captures_and_passes_of_ones_own(
    host: nn.Module, make_head: Callable[..., DepthHead], make_pixels: MakePixels
) -> None:
    heads = [make_head(host), make_head(host, structural=False)]
    devices = [FakeDevice(), FakeDevice()]
    x = [make_pixels(seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        expected = [[attach(host, head)(one) for one in x] for head in heads]
    with (
        overlapped(host, heads[0], devices[0]) as first,
        overlapped(host, heads[1], devices[1]) as second,
        first.capture() as seen,
        devices[0],
    ):
        for one in x:
            host(one)
            first(make_pixels(seed=5))  # runs the tower for itself: no overlap, not `depth`
        second.detach()
        assert [overlap_of(plugin).passes for plugin in (first, second)] == [2, 2]
        maps = [one.depth for one in seen]
    for depth, known in zip(maps, expected[0], strict=True):
        torch.testing.assert_close(depth, known)
    torch.testing.assert_close(second.depth, expected[1][1])
    assert (devices[0].races, devices[0].untold) == ([], 0)


def test_each_thread_has_its_own_stream(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """Another thread may read a captured pass: its stream waits, too."""
    with torch.no_grad():
        expected = [attach(host, head)(make_pixels(seed=seed)) for seed in range(3)]
    with overlapped(host, head, device) as plugin:

        def work(seed: int) -> Tensor:
            with torch.no_grad(), plugin.capture() as seen:
                host(make_pixels(seed=seed))
                (one,) = seen
                passes.append(one)
            return plugin.depth

        passes: list[Any] = []
        with ThreadPoolExecutor(3) as pool:
            depths = list(pool.map(work, range(3)))
        for depth, known in zip(depths, expected, strict=True):
            torch.testing.assert_close(depth, known)
        device.log.clear()
        assert passes[0].depth.isfinite().all()
        assert device.log == ["host waits"]
        assert overlap_of(plugin).passes == 3
