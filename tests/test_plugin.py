"""attach and DepthPlugin: checks, reading, threads and tasks, memory, wrong use."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, HeadConfig, attach, find_towers
from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.layouts import Views
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.config import Provenance
from clipdepth_plugin.errors import (
    HeadMismatchError,
    HostError,
    ImageError,
    NoDepthError,
    TowerNotFoundError,
)
from clipdepth_plugin.features import one_size

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


@pytest.fixture
def host(make_host: MakeHost) -> nn.Module:
    return make_host("dinov2")


@pytest.fixture
def head(host: nn.Module, make_head: MakeHead) -> DepthHead:
    return make_head(host)


# --- what does not fit --------------------------------------------------------------------------


def with_config(head: DepthHead, **changes: Any) -> DepthHead:
    return DepthHead(HeadConfig(**{**head.config.model_dump(), **changes})).eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, r"reads width 48, the tower has 32"),
        ({"semantic_levels": (5, 3, 2, 1)}, r"reads level 5, the tower has levels 0 to 4"),
    ],
    ids=["width", "level"],
)
def test_head_that_does_not_fit(
    changes: dict[str, Any], message: str, host: nn.Module, head: DepthHead
) -> None:
    with pytest.raises(HeadMismatchError, match=message):
        attach(host, with_config(head, **changes))
    assert not any(module._forward_hooks for module in host.modules())


def test_context_that_the_tower_does_not_have(make_host: MakeHost, make_head: MakeHead) -> None:
    host = make_host("paligemma")
    with pytest.raises(HeadMismatchError, match="'pooled' context, this tower has 'mean'"):
        attach(host, make_head(host, context="pooled"))
    attach(host, make_head(host, context="pooled", film=False)).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_recorded_tower_weights(
    dtype: torch.dtype, host: nn.Module, head: DepthHead, caplog: pytest.LogCaptureFixture
) -> None:
    (tower,) = find_towers(host)
    provenance = Provenance(tower="the right one", tower_hashes=tower_hashes(tower))
    recorded = with_config(head, provenance=provenance)
    attach(host.to(dtype), recorded).detach()
    assert not caplog.records
    with torch.no_grad():
        next(tower.blocks[1].parameters())[0] += 1
    with pytest.raises(HeadMismatchError, match="trained on the right one; the weights of"):
        attach(host, recorded)
    attach(host.to("meta"), recorded).detach()
    assert "cannot check" in caplog.text


def test_hash_does_not_depend_on_names_or_order(host: nn.Module) -> None:
    (tower,) = find_towers(host)
    before = tower_hashes(tower)
    block = tower.blocks[0]
    block._modules = dict(reversed(block._modules.items()))
    assert tower_hashes(tower) == before


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Conv2d(3, 8, 3))])
def test_no_tower(model: nn.Module, head: DepthHead) -> None:
    with pytest.raises(TowerNotFoundError, match="no patch embedding was found"):
        attach(model, head)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("convnext_atto", {}, "feeds no list of attention blocks"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "a hierarchical tower"),
    ],
)
def test_towers_that_cannot_work(
    name: str, options: dict[str, Any], reason: str, head: DepthHead
) -> None:
    import timm

    with pytest.raises(TowerNotFoundError, match=reason):
        attach(timm.create_model(name, **options), head)


class TwoTowers(nn.Module):
    """As in OpenVLA: two towers in one backbone."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"featurizer": first, "fused_featurizer": second})


def test_several_towers(make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels) -> None:
    host = TwoTowers(make_host("timm"), make_host("timm_siglip"))
    with pytest.raises(TowerNotFoundError, match=r"2 vision towers; choose one with tower="):
        make_head(host)
    with pytest.raises(TowerNotFoundError, match=r"no vision tower at 'backbone.nosuch'.*Found: "):
        make_head(host, tower="backbone.nosuch")
    for path in ("backbone.fused_featurizer", "backbone.fused_featurizer.blocks"):
        head = make_head(host, tower=path)
        with attach(host, head, tower=path) as plugin:
            assert plugin.tower.path == "backbone.fused_featurizer"
            host.backbone["fused_featurizer"](make_pixels())
            assert plugin.depth.shape == (2, 1, 32, 32)


def test_same_head_twice_and_two_heads(
    host: nn.Module, head: DepthHead, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    other = make_head(host, structural=False)
    with attach(host, head) as first:
        with pytest.raises(HeadMismatchError, match="attached to 'this tower' already"):
            attach(host, head)
        with attach(host, other) as second, torch.no_grad():
            host(make_pixels())
            assert not torch.allclose(first.depth, second.depth)
            expected = first.depth, second.depth
            first(make_pixels(seed=3))
            second(make_pixels(seed=4))
            assert torch.equal(first.depth, expected[0])  # each leaves the other's alone
            assert torch.equal(second.depth, expected[1])
        host(make_pixels(seed=2))
        assert first.depth.shape == (2, 1, 32, 32)
    with attach(host, head) as again:
        assert again.attached


# --- reading ------------------------------------------------------------------------------------


def test_no_pass_yet_and_after_attaching_again(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = attach(host, head)
    with pytest.raises(NoDepthError, match="no tower pass in this thread"):
        _ = plugin.depth
    host(make_pixels())
    depth = plugin.depth
    plugin.detach()
    host(make_pixels(seed=9))
    assert torch.equal(plugin.depth, depth)  # what was read stays
    with plugin.attach(), pytest.raises(NoDepthError, match="no tower pass"):
        _ = plugin.depth


def test_reading_again_gives_the_same_maps_and_tokens_are_freed(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, plugin.capture() as seen:
        host(make_pixels())
        tokens = weakref.ref(one_size(seen[0].features).levels[4].untyped_storage())
        first = plugin.depth
        gc.collect()
        assert tokens() is None
        assert torch.equal(plugin.depth, first)
        assert torch.equal(seen[0].depth, first)
        with pytest.raises(NoDepthError, match="freed when this pass's depth was read"):
            _ = seen[0].features


def test_only_wanted_levels_are_kept_and_the_last_pass_goes(
    host: nn.Module, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    head = make_head(host, semantic_levels=(4, 4, 2, 2), structural=False)
    with attach(host, head) as plugin:
        host(make_pixels())
        first = plugin._last()
        assert sorted(first._levels) == [2, 4]
        old = weakref.ref(first)
        del first
        host(make_pixels())
        gc.collect()
        assert old() is None


def test_memory_is_flat(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        counts = []
        for i in range(60):
            host(make_pixels(batch=1))
            if i % 4 == 3:
                _ = plugin.depth
            if i % 20 == 19:
                gc.collect()
                counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    assert counts[1] == counts[2]


def test_dropped_plugin_detaches(host: nn.Module, head: DepthHead) -> None:
    plugin = attach(host, head)
    assert host.encoder.layer[0]._forward_hooks  # type: ignore[index, union-attr]
    del plugin
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.modules())


def test_plugins_parameters_are_the_heads(host: nn.Module, head: DepthHead) -> None:
    with attach(host, head) as plugin:
        assert {id(p) for p in plugin.parameters()} == {id(p) for p in head.parameters()}
        for copier in (copy.deepcopy, pickle.dumps):
            with pytest.raises(HeadMismatchError, match=r"save or copy plugin\.head"):
                copier(plugin)


def test_training_mode_is_not_read(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin:
        host(make_pixels())
        plugin.train()
        before = {k: x.clone() for k, x in head.state_dict().items()}
        with pytest.raises(HeadMismatchError, match="in training mode"):
            _ = plugin.depth
        assert all(torch.equal(x, before[k]) for k, x in head.state_dict().items())
        plugin.eval()
        assert plugin.depth.shape == (2, 1, 32, 32)


def test_non_finite_depth_names_the_views(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    odd = make_pixels(batch=3)
    odd[1, 0, 5, 5] = torch.nan
    with attach(host, head) as plugin:
        host(odd)
        with pytest.raises(NoDepthError, match=r"views \[1\] is not finite"):
            _ = plugin.depth
        with pytest.raises(ImageError, match=r"images \[1\] are not finite"):
            plugin(odd)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_pixels_of_a_wrong_shape(shape: tuple[int, ...], host: nn.Module, head: DepthHead) -> None:
    with pytest.raises(ImageError, match=r"expected \(images, 3, H, W\)"):
        attach(host, head)(torch.zeros(shape))


def test_pixels_are_tapped_for_heads_that_ask(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    guided = DepthHead.for_host(host, "guided", channels=(8, 8, 8), stem_channels=4).eval()
    with attach(host, guided) as plugin, plugin.capture() as seen:
        host(make_pixels())
        features = one_size(seen[0].features)
        assert features.pixels is not None
        assert torch.equal(features.pixels, make_pixels())
        expected = guided(features, (32, 32))
        torch.testing.assert_close(plugin.depth, expected, rtol=0, atol=0)
        assert seen[0]._pixels is None
        x = make_pixels(seed=8)
        host(x)
        x.zero_()  # a robot's camera buffer, used again
        with pytest.raises(NoDepthError, match="pixels were written into in place"):
            _ = seen[1].features
    assert one_size(attach(host, head).features(make_pixels())).pixels is None


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch(batch: int, host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head) as plugin:
        assert plugin(make_pixels(batch=batch)).shape == (batch, 1, 32, 32)


def test_other_input_sizes(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    """A tower that takes any size, not square and not a multiple of the patch."""
    with attach(host, head) as plugin, plugin.capture() as seen, torch.no_grad():
        host(make_pixels(size=(40, 67)))
        assert seen[0].views == (Views(2, (5, 8), (40, 67)),)
        assert plugin.depth.shape == (2, 1, 40, 67)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tower(
    dtype: torch.dtype, host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    x = make_pixels()
    expected = attach(host, head)(x)
    with attach(host.to(dtype), make_like(head)) as plugin:
        host(x.to(dtype))
        assert plugin.depth.dtype == torch.float32
        torch.testing.assert_close(plugin.depth, expected, rtol=0.1, atol=0.05)
        torch.testing.assert_close(plugin(x), expected, rtol=0.1, atol=0.05)


def make_like(head: DepthHead) -> DepthHead:
    twin = DepthHead(head.config).eval()
    twin.load_state_dict(head.state_dict())
    return twin


def test_tokens_written_in_place_are_noticed(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    def spoil(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].mul_(2)

    with torch.no_grad(), attach(host, head) as plugin:
        clean = plugin(make_pixels())
        (tower,) = find_towers(host)
        handle = tower.blocks[3].register_forward_pre_hook(spoil)
        host(make_pixels())
        with pytest.raises(NoDepthError, match="written into in place"):
            _ = plugin.depth
        handle.remove()
        with torch.inference_mode():  # copies are kept there: level 3 is the unspoilt one
            host(make_pixels())
        torch.testing.assert_close(plugin.depth, clean)


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


def test_depth_is_the_callers_to_write_into(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    wide = DepthHead(
        HeadConfig(
            **{**head.config.model_dump(), "channels": (16, 8, 8)[:3]}
            | {"semantic_levels": (4, 3, 2), "structural_levels": (2, 1)}
        )
    ).eval()
    with attach(host, wide) as plugin:  # native size is the input's: nothing is resized
        host(make_pixels())
        before = plugin.depth.clone()
        plugin.depth.mul_(2)
        sized = plugin.predict((32, 32))
        assert isinstance(sized, Tensor)
        sized.mul_(2)
        assert torch.equal(plugin.depth, before)


def test_pixels_beyond_the_last_patch_repeat_and_do_not_stretch(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    x = make_pixels(size=(40, 71))
    with torch.no_grad(), attach(host, head) as plugin:
        host(x[..., :64])
        whole = plugin.depth
        host(x)
        assert plugin.depth.shape == (2, 1, 40, 71)
        torch.testing.assert_close(plugin.depth[..., :64], whole)
        torch.testing.assert_close(plugin.depth[..., 64:], whole[..., -1:].expand(-1, -1, -1, 7))
        torch.testing.assert_close(plugin(x), plugin.depth)


def test_threads_share_a_detached_plugin(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = DepthPlugin(host, head)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = plugin(make_pixels())

        def work(_: int) -> bool:
            with torch.no_grad():
                return torch.allclose(plugin(make_pixels()), expected, atol=1e-6)

        assert all(pool.map(work, range(60)))
    assert not any(module._forward_hooks for module in host.modules())


def test_offloaded_host(make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels) -> None:
    """Accelerate keeps the weights elsewhere (here on the CPU, the modules on meta)."""
    accelerate = pytest.importorskip("accelerate", reason="comes with the extra train")
    host = make_host("dinov2")
    head = make_head(host)
    expected = attach(host, head)(make_pixels()).detach()
    accelerate.cpu_offload(host, execution_device=torch.device("cpu"))
    with torch.no_grad(), attach(host, make_like(head)) as plugin:
        host(make_pixels())
        torch.testing.assert_close(plugin.depth, expected)
        torch.testing.assert_close(plugin(make_pixels()), expected)


def test_head_on_another_device(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head.to("meta")) as plugin:
        host(make_pixels())
        for read in (lambda: plugin.depth, lambda: plugin(make_pixels())):
            with pytest.raises(HeadMismatchError, match=r"head is on meta.*head\.to\('cpu'\)"):
                read()


def test_token_count_that_the_adapter_does_not_know(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """A host that drops tokens on the way (here before block 2) is not read wrongly."""
    host: Any = make_host("timm")
    with attach(host, make_head(host)) as plugin:
        host.blocks[1].register_forward_pre_hook(lambda _m, args: (args[0][:, :-3],))
        host(make_pixels())
        with pytest.raises(NoDepthError, match=r"level 2 came as \(2, 14, 32\), expected"):
            _ = plugin.depth


def test_tower_leaves_no_later_than_needed(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host("timm")
    ran: list[int] = []
    for i, block in enumerate(host.blocks, start=1):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    shallow = {"semantic_levels": (2, 2, 1, 1), "structural_levels": (1, 1, 0)}
    plugin = attach(host, make_head(host, context="mean", **shallow))
    plugin(make_pixels())
    assert ran == [1, 2]
    ran.clear()
    host(make_pixels())
    assert ran == [1, 2, 3, 4]
    plugin.detach()
    ran.clear()
    attach(host, make_head(host, context="pooled", **shallow))(make_pixels())
    assert ran == [1, 2, 3, 4]


# --- torch.compile ------------------------------------------------------------------------------


def test_attached_before_the_first_compiled_call(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """The hooks are captured, under fullgraph too."""
    host = make_host("timm")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        expected = [plugin(make_pixels(seed=seed)) for seed in (1, 2)]
        compiled = torch.compile(host, fullgraph=True, backend="aot_eager")
        for seed in (1, 2):
            compiled(make_pixels(seed=seed))
            torch.testing.assert_close(plugin.depth, expected[seed - 1])
    torch._dynamo.reset()


def test_attached_after_the_first_compiled_call(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """Compiled code is made anew, also for batch sizes that it has seen before."""
    host = make_host("timm")
    compiled = torch.compile(host, backend="eager", dynamic=False)
    with torch.no_grad():
        for batch in (2, 3):
            compiled(make_pixels(batch=batch))
        with attach(host, make_head(host)) as plugin:
            for batch in (3, 2):
                compiled(make_pixels(batch=batch))
                torch.testing.assert_close(plugin.depth, plugin(make_pixels(batch=batch)))
    torch._dynamo.reset()


def test_a_replayed_tower_is_an_error_and_never_an_old_map(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """A host that runs no hook (as one that replays its own graph) gives no depth."""
    host: Any = make_host("hf_clip")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        ids = torch.tensor([[1, 5, 6]] * 2)
        host(pixel_values=make_pixels(), input_ids=ids)
        assert plugin.depth.shape == (2, 1, 32, 32)
        host.vision_model.forward = lambda *_, **__: host.vision_model.config  # no block runs
        with contextlib.suppress(AttributeError):
            host(pixel_values=make_pixels(seed=2), input_ids=ids)
        with pytest.raises(NoDepthError, match="without its vision tower"):
            _ = plugin.depth


# --- threads and tasks --------------------------------------------------------------------------


def test_threads_never_see_each_others_depth(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        expected = [plugin(make_pixels(seed=seed)) for seed in range(4)]
        barrier = threading.Barrier(4)

        def work(seed: int) -> bool:
            for _ in range(10):
                host(make_pixels(seed=seed))
                barrier.wait(timeout=60)  # every thread has run before any reads
                if not torch.allclose(plugin.depth, expected[seed], atol=1e-6):
                    return False
                barrier.wait(timeout=60)
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        with pytest.raises(NoDepthError, match="another thread"):
            _ = plugin.depth


def test_tasks_never_see_each_others_depth(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        expected = [plugin(make_pixels(seed=seed)) for seed in range(3)]

        async def work(seed: int) -> bool:
            with plugin.capture() as seen:
                host(make_pixels(seed=seed))
                await asyncio.sleep(0)  # the others run now
            same = torch.allclose(plugin.depth, expected[seed], atol=1e-6)
            return same and len(seen) == 1

        async def all_of_them() -> list[bool]:
            return list(await asyncio.gather(*(work(seed) for seed in range(3))))

        assert asyncio.run(all_of_them()) == [True] * 3


# --- predict ------------------------------------------------------------------------------------

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
        # The same camera, told in pixels of a picture twice as large as the tower's input.
        maps = plugin.predict(original_sizes=(64, 64), intrinsics=(40.0, 40.0, 31.5, 31.5))
        expected = plugin.predict(original_sizes=(64, 64))
        torch.testing.assert_close(maps[0], expected[0] / 2)
        each = plugin.predict(focal_px=[20.0, 80.0])
        assert isinstance(each, Tensor)
        torch.testing.assert_close(each[1], plain[1] * 2)
        with caplog.at_level("INFO", "clipdepth_plugin"):
            some = plugin.predict(focal_px=[20.0, None])
        assert torch.equal(some[1], plain[1])
        assert "images [1]: focal length taken as 40 px" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"focal_px": 20.0}, HeadMismatchError, "trained without a canonical camera"),
        ({"size": (4, 4), "original_sizes": (4, 4)}, HostError, "give one"),
        ({"original_sizes": [(4, 4)]}, HostError, "1 given for 2 images"),
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
        host(make_pixels(size=(40, 40)))
        with pytest.raises(HostError, match=r"gives \(32, 32\), this pass saw \(40, 40\)"):
            plugin.predict(original_sizes=(64, 64))


def test_plugin_without_attaching(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = DepthPlugin(host, head)
    assert not plugin.attached
    assert plugin(make_pixels()).shape == (2, 1, 32, 32)
    with pytest.raises(NoDepthError):
        _ = plugin.depth
