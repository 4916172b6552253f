"""DepthPlugin.stream: state for each camera, whatever order passes are read in."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import HostError, NoDepthError

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]

FRAMES = 6


def video(make_pixels: MakePixels, seed: int) -> list[Tensor]:
    """(1, 3, H, W) frames of one place with noise."""
    still = make_pixels(batch=1, seed=seed)
    return [still + 0.05 * make_pixels(batch=1, seed=100 * seed + k) for k in range(FRAMES)]


def alone(host: nn.Module, head: DepthHead, frames: list[Tensor]) -> list[Tensor]:
    """What a stream gives that sees nothing else."""
    with attach(host, head) as plugin, torch.no_grad():
        stream, maps = plugin.stream("alone"), []
        for frame in frames:
            host(frame)
            maps.append(stream.depth)
    return maps


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.fixture
def videos(make_pixels: MakePixels) -> list[list[Tensor]]:
    return [video(make_pixels, seed) for seed in (1, 2)]


def test_it_changes_what_follows_the_first_pass_and_nothing_of_the_plugins_own(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist")
        assert plugin.stream("wrist") is stream
        for number, frame in enumerate(videos[0]):
            expected = host(frame)
            depth = stream.depth
            assert torch.equal(host(frame)[0], expected[0])
            own = plugin.depth
            assert torch.equal(own, plugin(frame))
            assert torch.equal(depth, own) == (number == 0)
            assert depth.shape == own.shape == (1, 1, 32, 32)


def test_a_pass_is_taken_once_and_passes_may_be_dropped(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    read = videos[0][::2]
    expected = alone(host, head, read)
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist")
        for frame, depth in zip(read, expected, strict=True):
            host(frame)
            for _ in range(3):
                assert same([stream.depth, stream.depths[0][None]], [depth, depth])
                assert stream.predict((5, 7)).shape == (1, 1, 5, 7)  # type: ignore[union-attr]
            host(videos[1][0])  # never read
            host(frame[:, :, :16])


@pytest.mark.parametrize("order", ["ABABABABABAB", "AABBBBBAABAA", "ABBAABBAABBA"])
def test_interleaved_cameras_never_mix(
    order: str, host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    expected = {name: alone(host, head, frames) for name, frames in zip("AB", videos, strict=True)}
    rest = {name: iter(frames) for name, frames in zip("AB", videos, strict=True)}
    maps: dict[str, list[Tensor]] = {"A": [], "B": []}
    with attach(host, head) as plugin, torch.no_grad():
        for name in order:
            stream = plugin.stream(name)
            host(next(rest[name]))
            maps[name].append(stream.depth)
    assert all(same(maps[name], expected[name]) for name in "AB")


def test_cameras_of_one_pass_may_change_places(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    expected = [alone(host, head, frames) for frames in videos]
    with attach(host, head) as plugin, torch.no_grad():
        for number in range(FRAMES):
            places = (0, 1) if number % 2 else (1, 0)
            plugin.stream("A", view=places[0])
            plugin.stream("B", view=places[1])
            host(torch.cat([videos[place][number] for place in places]))
            maps = [plugin.stream(name).depth for name in "AB"]
            assert same(maps, [one[number] for one in expected])
        both = plugin.stream("both", view="all").depth
        assert both.shape == (2, 1, 32, 32)


def test_passes_of_a_capture(host: nn.Module, head: DepthHead, videos: list[list[Tensor]]) -> None:
    """A policy that calls its tower once a camera."""
    expected = [alone(host, head, frames) for frames in videos]
    with attach(host, head) as plugin, torch.no_grad():
        streams = [plugin.stream("A"), plugin.stream("B")]
        for number in range(FRAMES):
            with plugin.capture() as seen:
                host(videos[0][number])
                host(videos[1][number])
            maps = [stream.of(one).depth for stream, one in zip(streams, seen, strict=True)]
            assert same(maps, [one[number] for one in expected])
            again = streams[0].of(seen[0])
            assert torch.equal(again.depth, maps[0])
            with pytest.raises(HostError, match="of a stream already"):
                streams[1].of(again)
    with attach(host, head) as other, pytest.raises(HostError, match="of another plug-in"):
        other.stream("A").of(seen[0])


def test_threads_share_a_stream_without_harm(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    failed: list[BaseException] = []
    with attach(host, head) as plugin:
        stream = plugin.stream("wrist", view="all")

        def work(frames: list[Tensor]) -> None:
            try:
                for frame in frames:
                    with torch.no_grad():
                        host(frame.expand(2, -1, -1, -1))
                        depth = stream.depth
                        assert torch.equal(depth, stream.depth)
                        assert bool(depth.isfinite().all())
            except BaseException as error:  # noqa: BLE001 (told to the test's own thread)
                failed.append(error)

        threads = [threading.Thread(target=work, args=(frames,)) for frames in videos * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_passes_and_plugins_are_not_kept(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    plugin = attach(host, head)
    stream, passes = plugin.stream("wrist"), []
    for frame in videos[0]:
        with plugin.capture() as seen:
            host(frame)
        assert stream.depth.shape == (1, 1, 32, 32)
        passes.append(weakref.ref(seen[0]))
        seen.clear()
    gc.collect()
    assert sum(one() is not None for one in passes) == 1
    dropped = weakref.ref(plugin)
    del plugin
    gc.collect()
    assert dropped() is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.modules())


def test_cameras_scale_the_stabilised_map(
    make_host: MakeHost, make_head: MakeHead, videos: list[list[Tensor]]
) -> None:
    host = make_host("dinov2")
    head = make_head(host, canonical_focal=40.0)
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist")
        for number, frame in enumerate(videos[0]):
            host(frame)
            scaled = stream.predict(focal_px=40.0 * (number + 1))
            assert isinstance(scaled, Tensor)
            torch.testing.assert_close(scaled, stream.depth * (number + 1))


def test_tokens_are_of_the_stabilised_map(
    make_host: MakeHost, make_head: MakeHead, videos: list[list[Tensor]]
) -> None:
    host = make_host("dinov2")
    head = make_head(host, canonical_focal=40.0, confidence=True)
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist", view=1)
        for number, (other, frame) in enumerate(zip(videos[1], videos[0], strict=True)):
            host(torch.cat([other, frame]))
            own, steady = plugin.tokens(focal_px=50.0), stream.tokens(focal_px=50.0)
            assert isinstance(own, Tensor)
            assert isinstance(steady, Tensor)
            assert torch.allclose(own[1:], steady) == (number == 0)
            (depth_11hw,) = stream._pass().native_depths(focal_px=50.0)
            pooled = nn.functional.avg_pool2d(depth_11hw.log(), depth_11hw.shape[-1] // 4).exp()
            torch.testing.assert_close(steady[0, :, 0], pooled.flatten())
            torch.testing.assert_close(steady[..., 1], own[1:, :, 1])  # the frame's own


def test_reset_and_constant_pictures(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist")
        for number, frame in enumerate(videos[0]):
            host(torch.full_like(frame, -1.0))
            assert stream.depth.isnan().all()
            host(frame)
            if number == 3:
                stream.reset()
            assert torch.equal(stream.depth, plugin.depth) == (number in (0, 3))


def test_what_is_refused(host: nn.Module, head: DepthHead, videos: list[list[Tensor]]) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        host(videos[0][0])
        assert plugin.depth.shape == (1, 1, 32, 32)
        early = plugin.stream("early")
        with pytest.raises(NoDepthError, match="make the stream before the tower runs"):
            _ = early.depth
        host(videos[0][0])
        with pytest.raises(HostError, match=r"'early' reads view 3, and this pass has 1"):
            _ = plugin.stream("early", view=3).depth
        odd: list[tuple[Any, Any]] = [(1, None), (None, None), ("a", -1), ("a", True), ("a", "b")]
        for name, view in odd:
            with pytest.raises(HostError, match=r"name|expected the view's number"):
                plugin.stream(name, view=view)
        with pytest.raises(HostError, match="tower_pass"):
            early.of(plugin)  # type: ignore[arg-type]
    fresh = DepthPlugin(host, head)
    with pytest.raises(NoDepthError):
        _ = fresh.stream("none").depth


def test_an_autocast_of_the_reader_changes_nothing(
    host: nn.Module, head: DepthHead, videos: list[list[Tensor]]
) -> None:
    expected = alone(host, head, videos[0])
    with attach(host, head) as plugin, torch.no_grad():
        stream = plugin.stream("wrist")
        for frame, depth in zip(videos[0], expected, strict=True):
            host(frame)
            with torch.autocast("cpu", torch.bfloat16):
                assert same([stream.depth], [depth])
