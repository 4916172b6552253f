"""torch.export of a DepthTower, one graph of torch.compile, CUDA graphs: the numbers of eager."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipdepth_plugin import DepthHead, DepthTower, attach
from clipdepth_plugin.adapters.loading.demo import load_demo_tower
from clipdepth_plugin.features import one_size
from tests.tiny.case import pixels
from tests.tiny.packed import PACKED
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
PRESETS: dict[str, dict[str, Any]] = {
    "spaceclip": {},
    "fast": {"preset": "fast", "channels": (8, 8, 8), "canonical_focal": 37.3},
    "guided": {
        "preset": "guided", "channels": (8, 8, 8), "stem_channels": 4, "confidence": True,
    },
}  # fmt: skip


def exported(module: nn.Module, args: tuple[Any, ...], **options: Any) -> Callable[..., Any]:
    loaded: Callable[..., Any] = torch.export.export(module, args, **options).module()
    return loaded


def again(module: nn.Module, args: tuple[Any, ...], **options: Any) -> Callable[..., Any]:
    """A module exported, saved, and loaded."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, args, **options), file)
    file.seek(0)
    loaded: Callable[..., Any] = torch.export.load(file).module()
    return loaded


def operators(module: nn.Module, args: tuple[Any, ...]) -> Counter[str]:
    """How often each is in the exported graph."""
    program = torch.export.export(module, args).run_decompositions()
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def close(loaded: tuple[Any, ...], eager: tuple[Any, ...]) -> None:
    (seen, *maps), (expected_seen, *expected) = loaded, eager
    assert list(seen) == list(expected_seen)
    for got, one in zip((*seen.values(), *maps), (*expected_seen.values(), *expected), strict=True):
        scale = float(one.nan_to_num().abs().max())
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)


def inputs(head: DepthHead, batch: int) -> tuple[Tensor, ...]:
    """Pictures, the first of one colour, and their cameras where the head takes them."""
    x = pixels(batch, batch)
    x[0] = 0.5
    focal = head.config.canonical_focal is not None
    return (x, torch.linspace(20, 60, batch)) if focal else (x,)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("hf_clip", "fast"),
        ("dinov2", "spaceclip"),
        ("dinov3", "fast"),
        ("timm", "guided"),
        ("llava", "spaceclip"),
        ("paligemma", "guided"),
        ("smolvlm", "fast"),
    ],
)
@torch.no_grad()
def test_pictures_of_one_shape(name: str, preset: str, make_head: MakeHead) -> None:
    host = BY_NAME[name].host()
    head = make_head(host, **PRESETS[preset])
    args = inputs(head, 2)
    depth_tower = DepthTower(host, head, example=args[0])
    close(exported(depth_tower, args)(*args), depth_tower(*args))


@pytest.mark.parametrize(("name", "preset"), [("open_clip", "spaceclip"), ("hf_siglip", "guided")])
@torch.no_grad()
def test_any_number_of_pictures(name: str, preset: str, make_head: MakeHead) -> None:
    """Saved and loaded again."""
    host = BY_NAME[name].host()
    head = make_head(host, **PRESETS[preset])
    depth_tower = DepthTower(host, head)
    assert depth_tower.dynamic_batch
    args, batch = inputs(head, 2), torch.export.Dim("batch", min=1, max=64)
    loaded = again(depth_tower, args, dynamic_shapes=tuple({0: batch} for _ in args))
    for count in (1, 5):
        close(loaded(*inputs(head, count)), depth_tower(*inputs(head, count)))


@torch.no_grad()
def test_the_demo_host_in_its_inference_form(make_head: MakeHead) -> None:
    """At a size of its own, with one shape."""
    host = load_demo_tower(random_weights=True)
    head = make_head(host, **PRESETS["fast"])
    x = pixels(1, 1, (42, 56))
    depth_tower = DepthTower(host, head.fused(), example=x)
    close(exported(depth_tower, (x,))(x), depth_tower(x))


@torch.no_grad()
def test_a_packed_tower_with_its_grid_as_a_constant(make_head: MakeHead) -> None:
    """Its windows and lengths become numbers of the graph."""
    (packed,) = (case for case in PACKED if case.name == "qwen2_5_vl")
    host = packed.host()
    given = packed.pack(packed.pictures([(8, 4)]))
    depth_tower = DepthTower(
        host,
        make_head(host, **PRESETS["guided"]),
        example=torch.zeros_like(given["pixel_values"]),
        grid_thw=given["image_grid_thw"],
    )
    assert not depth_tower.dynamic_batch
    loaded = exported(depth_tower, (given["pixel_values"],))
    close(loaded(given["pixel_values"]), depth_tower(given["pixel_values"]))


@torch.no_grad()
def test_a_head_alone(make_head: MakeHead) -> None:
    """Levels of a tower that runs elsewhere."""
    host = BY_NAME["hf_siglip"].host()
    head = make_head(host, **{**PRESETS["guided"], "canonical_focal": 40.0})
    depth_tower = DepthTower(host, head)
    x, focal_px = pixels(), torch.tensor([30.0, 50.0])
    with attach(host, head) as plugin:
        features = one_size(plugin.features(x))
    levels = [features.levels[k] for k in depth_tower.level_head.levels]
    args = (levels, features.context, features.pixels, focal_px)
    depth, confidence = exported(depth_tower.level_head, args)(*args)
    close(({}, depth, confidence), ({}, *depth_tower(x, focal_px)[1:]))


@torch.no_grad()
def test_an_attached_plugin(make_head: MakeHead) -> None:
    """Its graph gives the numbers of DepthTower, and the host goes on to give depth."""
    host = BY_NAME["dinov2"].host()
    head = make_head(host, **PRESETS["guided"])
    x = pixels()
    with attach(host, head) as plugin:
        loaded = exported(plugin, (x,))
        host(x)
        depth = plugin.depth
    torch.testing.assert_close(loaded(x), depth, rtol=1e-5, atol=0)
    assert torch.equal(DepthTower(host, head)(x)[1], depth)


@pytest.mark.parametrize("name", ["dinov2", "hf_clip", "timm", "paligemma"])
@torch.no_grad()
def test_an_attached_plugin_is_exported_as_the_depth_tower_is(
    name: str, make_head: MakeHead
) -> None:
    """Its graph is that of DepthTower up to the last level, and the head: no operator beside."""
    host = BY_NAME[name].host()
    head = make_head(host, **PRESETS["fast"])
    with attach(host, head) as plugin:
        mine = operators(plugin, (pixels(),))
    whole = operators(DepthTower(host, head), (pixels(),))
    assert mine <= whole
    assert mine["aten.convolution.default"] == whole["aten.convolution.default"]


@torch.no_grad()
def test_one_graph_of_torch_compile(make_head: MakeHead) -> None:
    """Of an attached plug-in and of a DepthTower."""
    host = BY_NAME["timm"].host()
    head = make_head(host, **PRESETS["fast"])
    depth_tower = DepthTower(host, head)
    with attach(host, head) as plugin:
        for module in (plugin, depth_tower):
            compiled = torch.compile(module, fullgraph=True, backend="eager")
            for seed in (1, 2):
                got, expected = (one(pixels(seed)) for one in (compiled, module))
                torch.testing.assert_close(got, expected)
    torch._dynamo.reset()


class NothingWaits(TorchDispatchMode):
    """Refuses what waits for a device or copies to it: no CUDA graph can record that."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "lift_fresh"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["open_clip", "hf_siglip", "dinov3", "llava", "smolvlm"])
@torch.no_grad()
def test_a_cuda_graph_can_record_it(
    name: str, make_head: MakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording is pretended, for want of a GPU."""
    host = BY_NAME[name].host()
    x, focal_px = pixels(), torch.tensor([30.0, 50.0])
    head = make_head(host, **{**PRESETS["guided"], "canonical_focal": 40.0})
    depth_tower = DepthTower(host, head, example=x)
    expected = depth_tower(x, focal_px)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with NothingWaits():  # type: ignore[no-untyped-call]
        recorded = depth_tower(x, focal_px)
    close(recorded, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.no_grad()
def test_a_cuda_graph_of_the_whole(make_head: MakeHead) -> None:
    host = BY_NAME["dinov2"].host()
    depth_tower = DepthTower(host, make_head(host, **PRESETS["guided"])).cuda()
    x = pixels().cuda()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        depth_tower(x)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = depth_tower(x)
    x.copy_(pixels(seed=2))
    graph.replay()
    close(recorded, depth_tower(x))
