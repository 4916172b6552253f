"""attach(..., overlap=True) where the head can't run beside its host, or something fails."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from clipdepth_plugin.plugin.overlap import Streams
from tests.tiny.case import tensors
from tests.tiny.packed import PACKED
from tests.tiny.streams import FakeDevice, overlap_of, overlapped

MakePixels = Callable[..., Tensor]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


WHY_NOT: dict[str, str] = {
    "cpu": "streams run beside each other on CUDA, and the head is on cpu",
    "gradients": "the host runs with gradients",
    "compiled": "came out of compiled code, which shows them at its end only",
    "compiled block": "came out of compiled code, where writes can't be noticed",
    "head elsewhere": "the head is on meta, tokens on cpu",
    "inference weights": "weights were made in inference mode",
}


@pytest.mark.parametrize("case", WHY_NOT)
def test_where_it_cannot_be(
    case: str,
    make_host: Callable[[str], nn.Module],
    make_head: Callable[..., DepthHead],
    make_pixels: MakePixels,
    device: FakeDevice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Depth is computed when it is read, and said once why."""
    host, x = make_host("timm"), make_pixels()
    with torch.inference_mode(case == "inference weights"):
        head = make_head(host)
    with torch.no_grad(), attach(host, head) as plugin:
        host(x)
        expected = plugin.depth
    with overlapped(host, head, device) as plugin, caplog.at_level(logging.INFO):
        overlap = overlap_of(plugin)
        if case == "cpu":
            overlap.streams = Streams()
        run: Any = host
        if case == "compiled":
            run = torch.compile(host, fullgraph=True, backend="aot_eager")
        if case == "compiled block":
            plugin.tower.blocks[0].compile(fullgraph=True, backend="aot_eager")
        if case == "head elsewhere":
            head.to("meta")
        for _ in range(2):
            with torch.set_grad_enabled(case == "gradients"):
                run(x)
            if case == "head elsewhere":
                with pytest.raises(HeadMismatchError, match="head is on meta"):
                    _ = plugin.depth
            else:
                torch.testing.assert_close(plugin.depth, expected, rtol=0, atol=1e-6)
        assert overlap.passes == 0
        assert WHY_NOT[case] in overlap.why_not
        said = [r for r in caplog.records if WHY_NOT[case] in r.getMessage()]
        assert [r.levelno for r in said] == [logging.INFO]
    torch._dynamo.reset()


def test_an_error_is_said_once_though_its_text_changes(
    host: nn.Module,
    head: DepthHead,
    make_pixels: MakePixels,
    device: FakeDevice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[int] = []

    def fail(*_: Any) -> None:
        tried.append(len(tried))
        raise ValueError(f"no memory at {tried[-1]}")

    with overlapped(host, head, device) as plugin:
        head.register_forward_pre_hook(fail)
        for _ in range(3):
            host(make_pixels())
        assert len(caplog.records) == 1
        assert overlap_of(plugin).why_not == "ValueError: no memory at 2"


def test_a_host_whose_layout_must_be_read_runs_its_head_later(
    make_head: Callable[..., DepthHead], device: FakeDevice
) -> None:
    """Qwen's grids lie on the device: a hook that read them would stop the host."""
    case = next(case for case in PACKED if case.name.startswith("qwen2_5"))
    host = case.host()
    inputs = case.pack(case.pictures())
    head = make_head(host, context="mean")
    with attach(host, head) as plugin, torch.no_grad():
        case.run(host, inputs)
        expected = plugin.depths
    with overlapped(host, head, device) as plugin:
        case.run(host, inputs)
        assert all(map(torch.equal, plugin.depths, expected))
        assert overlap_of(plugin).passes == 0
        assert "grid_thw, which would make the host wait" in overlap_of(plugin).why_not


def test_training_mode_is_refused_when_read(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    with overlapped(host, head, device) as plugin:
        plugin.train()
        before = copy.deepcopy(head.state_dict())
        host.eval()(make_pixels())
        with pytest.raises(HeadMismatchError, match="in training mode"):
            _ = plugin.depth
        assert all(torch.equal(x, before[name]) for name, x in head.state_dict().items())
        assert overlap_of(plugin).why_not == "the head is in training mode"


def test_errors_between_taps(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels, device: FakeDevice
) -> None:
    """The host's own error ends a pass whose head has begun; the next one is whole again."""

    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with overlapped(host, head, device) as plugin, device:
        handle = plugin.tower.blocks[3].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            host(make_pixels())
        handle.remove()
        assert "side op" in device.log
        with pytest.raises(NoDepthError, match="level 4"):
            _ = plugin.depth
        host(make_pixels())
        depth = plugin.depth
    torch.testing.assert_close(depth, attach(host, head)(make_pixels()).detach())
    assert overlap_of(plugin).passes == 1
    assert (device.races, device.untold) == ([], 0)


@pytest.mark.parametrize("where", ["early", "late"])
def test_a_head_that_fails_is_no_trouble_of_the_hosts(
    where: str,
    host: nn.Module,
    head: DepthHead,
    make_pixels: MakePixels,
    device: FakeDevice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no memory")

    with torch.no_grad():
        alone = tensors(host(make_pixels()))
    part: Any = head.decoder.structural if where == "early" else head
    handle = part.register_forward_pre_hook(fail)
    with overlapped(host, head, device) as plugin:
        outputs = tensors(host(make_pixels()))
        assert all(map(torch.equal, outputs, alone))
        with pytest.raises(ValueError, match="no memory"):
            _ = plugin.depth
        (said,) = caplog.records
        assert said.levelno == logging.WARNING
        assert overlap_of(plugin).why_not == "ValueError: no memory"
        handle.remove()
        assert plugin.depth.isfinite().all()
