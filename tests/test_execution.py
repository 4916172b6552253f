"""Ways to run a host: wrappers are seen through; autocast and integer weights work."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._pytree import tree_leaves

from clipdepth_plugin import DepthHead, attach, find_towers

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]
MakePrompt = Callable[..., dict[str, Tensor]]

SCRIPT = Path(__file__).parent / "scripts" / "host_in_two_processes.py"


class _Adapted(nn.Module):
    """The nesting of PEFT's ``PeftModel``: the host lies at ``base_model.model``."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = host

    def forward(self, **inputs: Any) -> Any:
        return cast("nn.Module", self.base_model.model)(**inputs)


@contextmanager
def _ddp(host: nn.Module, folder: Path) -> Iterator[nn.Module]:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield nn.parallel.DistributedDataParallel(host)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _wrapped(how: str, host: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """The host in one of the wrappers that users put around it."""
    if how == "ddp":
        with _ddp(host, folder) as wrapped:
            yield wrapped
    elif how == "data_parallel":
        yield nn.DataParallel(host)
    elif how == "optimized_module":
        yield cast("nn.Module", torch.compile(host, backend="eager"))
    else:
        yield _Adapted(host)


@pytest.mark.parametrize("wrap", ["compiled", "checkpointed"])
@pytest.mark.parametrize("name", ["llava", "open_clip"])
def test_wrapped_blocks_are_seen_through(
    name: str, wrap: str, make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host(name)
    head, x = make_head(host), make_pixels()
    (tower,) = find_towers(host)
    with attach(host, head) as plugin, torch.no_grad():
        tower.module(x)
        bare = plugin.depth
    blocks: Any = host.get_submodule(tower.blocks_path)
    for place, block in enumerate(blocks):
        compiled = wrap == "compiled"
        wrapped = torch.compile(block, backend="eager") if compiled else checkpoint_wrapper(block)
        blocks[place] = wrapped
    with torch.no_grad():
        alone = tree_leaves(tower.module(x))
    with attach(host, head) as plugin, torch.no_grad():
        beside = tree_leaves(tower.module(x))
        torch.testing.assert_close(plugin.depth, bare, rtol=0, atol=1e-6)
        torch.testing.assert_close(plugin(x), bare, rtol=0, atol=1e-6)
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["ddp", "data_parallel", "optimized_module", "peft"])
def test_wrappers_are_seen_through(
    how: str,
    tmp_path: Path,
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: MakePrompt,
) -> None:
    host: Any = make_host("llava")
    head = make_head(host)
    inputs = {"pixel_values": make_pixels(), **make_prompt()}
    with attach(host, head) as plugin, torch.no_grad():
        host(**inputs)
        bare = plugin.depth
    with _wrapped(how, host, tmp_path) as wrapped, torch.no_grad():
        alone = wrapped(**inputs).logits
        with attach(wrapped, head) as plugin:
            beside = wrapped(**inputs).logits
            assert torch.equal(alone, beside)
            torch.testing.assert_close(plugin.depth, bare, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What each of two processes prints that run a host in both ways, and its errors."""
    folder = tmp_path_factory.mktemp("meeting")
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    for run in runs:
        try:
            said.append(run.communicate(timeout=120))
        except subprocess.TimeoutExpired:  # it waits for the other's failed process
            run.kill()
            said.append(run.communicate())
    return said


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes(how: str, two_processes: list[tuple[str, str]]) -> None:
    for ways, errors in two_processes:
        assert how in ways.split(), errors


@pytest.mark.parametrize("name", ["hf_clip_vision", "hf_siglip_vision", "timm", "open_clip"])
def test_autocast(
    name: str, make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host(name)
    run = host.encode_image if name == "open_clip" else host
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone = run(make_pixels())
        with attach(host, make_head(host)) as plugin:
            beside = run(make_pixels())
            depth = plugin.depth
    key = None if isinstance(alone, Tensor) else "last_hidden_state"
    assert torch.equal(*(out if key is None else out[key] for out in (alone, beside)))
    assert depth.dtype == torch.float32
    assert depth.isfinite().all()


class _Int8Linear(nn.Module):
    """Integer weights, one scale a row, products in bfloat16: dtypes as in 8-bit libraries."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale_O1 = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale_O1", scale_O1)
        self.weight = nn.Parameter((linear.weight / scale_O1).round().to(torch.int8), False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(torch.bfloat16) * cast("Tensor", self.scale_O1).bfloat16()
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(x.bfloat16(), weight, bias).to(x.dtype)


def test_integer_weights(make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels) -> None:
    host: Any = make_host("hf_clip_vision")
    head = make_head(host)
    with attach(host, head) as plugin, torch.no_grad():
        whole = plugin(make_pixels())
    for path, module in list(host.named_modules()):
        if isinstance(module, nn.Linear):
            host.set_submodule(path, _Int8Linear(module))
    with torch.no_grad():
        alone = host(make_pixels()).last_hidden_state
        with attach(host, head) as plugin:
            assert torch.equal(alone, host(make_pixels()).last_hidden_state)
            # Eight bits, and a head whose last step is exponential: near, not the same.
            torch.testing.assert_close(plugin.depth, whole, rtol=0.1, atol=0)
            assert not torch.equal(plugin.depth, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tower(
    dtype: torch.dtype, host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    x = make_pixels()
    expected = attach(host, head)(x)
    with attach(host.to(dtype), copy.deepcopy(head)) as plugin:
        host(x.to(dtype))
        assert plugin.depth.dtype == torch.float32
        torch.testing.assert_close(plugin.depth, expected, rtol=0.1, atol=0.05)
        torch.testing.assert_close(plugin(x), expected, rtol=0.1, atol=0.05)


def test_gradient_checkpointing_changes_no_pass(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """Blocks that a backward runs again belong to no pass, whichever came last."""
    host: Any = make_host("timm")
    with attach(host, make_head(host)) as plugin:
        expected = [plugin(make_pixels(seed=seed)) for seed in (1, 2)]
        host.set_grad_checkpointing(True)
        host.train()
        with plugin.capture() as seen:
            (host(make_pixels(seed=1)).sum() + host(make_pixels(seed=2)).sum()).backward()
        for one, depth in zip(seen, expected, strict=True):
            torch.testing.assert_close(one.depth, depth)


def test_offloaded_host(make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels) -> None:
    """Accelerate keeps the weights elsewhere (here on the CPU, the modules on meta)."""
    accelerate = pytest.importorskip("accelerate", reason="comes with the extra train")
    host = make_host("dinov2")
    head = make_head(host)
    expected = attach(host, head)(make_pixels()).detach()
    accelerate.cpu_offload(host, execution_device=torch.device("cpu"))
    with torch.no_grad(), attach(host, copy.deepcopy(head)) as plugin:
        host(make_pixels())
        torch.testing.assert_close(plugin.depth, expected)
        torch.testing.assert_close(plugin(make_pixels()), expected)
