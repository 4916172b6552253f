"""Every host in the table: found, read right, and not touched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import TowerFeatures, one_size
from tests.tiny.case import HostCase
from tests.tiny.table import BY_NAME, PRESENT

MakeHead = Callable[..., DepthHead]
PRESETS: dict[str, dict[str, Any]] = {
    "spaceclip": {},
    "fast": {"preset": "fast", "channels": (8, 8, 8)},
    "guided": {"preset": "guided", "channels": (8, 8, 8), "stem_channels": 4},
}
# Towers of transformers before 5.6 have an inner vision_model.
NEWEST = not isinstance(getattr(BY_NAME["hf_clip_vision"].host(), "vision_model", None), nn.Module)


@contextmanager
def attached(
    case: HostCase, host: nn.Module, make_head: MakeHead, **options: Any
) -> Iterator[DepthPlugin]:
    """A plug-in on the case's tower."""
    head = make_head(host, tower=case.choose, **options)
    with attach(host, head, tower=case.choose) as plugin:
        yield plugin


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two runs gave the same outputs, bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_tower_is_found(case: HostCase) -> None:
    tower = choose_tower(case.host(), case.choose)
    path = f"{case.tower}.vision_model".lstrip(".")
    assert tower.path == case.tower or (tower.path == path and not NEWEST)
    assert tower.family == case.family
    assert (tower.depth, tower.width, tower.patch_size) == (4, case.width, (8, 8))
    assert (tower.num_prefix_tokens, tower.contexts) == (case.prefix, case.contexts)
    assert tower.grid in {(4, 4), None}
    assert tower.sequence_first == (case.name in {"openai_clip", "bridgetower"})


@torch.no_grad()
def test_levels_are_the_librarys_own(case: HostCase, make_head: MakeHead) -> None:
    """Each tapped level equals ``output_hidden_states`` / ``forward_intermediates(norm=False)``."""
    host, x = case.host(), case.pixels()
    expected = case.levels(host, x)
    # Other tokens may follow the patches.
    patches = [level[:, case.prefix : case.prefix + 16] for level in expected]
    contexts: dict[str, Callable[[], Tensor | None]] = {
        "cls": lambda: expected[4][:, case.class_token],
        "mean": lambda: patches[4].mean(dim=1),
        "pooled": lambda: case.pooled(host, x) if case.pooled else None,
    }
    all_levels = {"semantic_levels": (4, 3, 2, 1), "structural_levels": (2, 1, 0)}
    for kind in case.contexts:
        with (
            attached(case, host, make_head, context=kind, **all_levels) as plugin,
            plugin.capture() as seen,
        ):
            case.run(host, x)
            assert len(seen) == case.passes
            features = [one_size(one.features) for one in seen]
        check_levels(features, patches)
        context = torch.cat([one.context for one in features if one.context is not None])
        torch.testing.assert_close(context, contexts[kind](), rtol=0, atol=1e-5, msg=kind)


def check_levels(features: list[TowerFeatures], expected: list[Tensor]) -> None:
    for level, tokens in enumerate(expected):
        seen = torch.cat([one.levels[level] for one in features])
        torch.testing.assert_close(seen, tokens, rtol=0, atol=1e-6, msg=f"level {level}")


@torch.no_grad()
def test_each_token_comes_from_its_place(case: HostCase, make_head: MakeHead) -> None:
    """A patch that changes is seen in the token of its row and column, and in no other."""
    host, x = case.host(), case.pixels()
    with attached(case, host, make_head, structural_levels=(2, 1, 0)) as plugin:
        before = one_size(plugin.features(x, **case.tower_kwargs))
        for row, column in ((0, 0), (0, 3), (2, 1), (3, 3)):
            changed = x.clone()
            changed[-1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
            after = one_size(plugin.features(changed, **case.tower_kwargs))
            # Level 0 enters the first block: no token has seen another.
            seen = (after.levels[0] - before.levels[0]).abs().amax(dim=-1) > 1e-5
            assert seen.nonzero().tolist() == [[len(x) - 1, 4 * row + column]]
    assert before.grid == (4, 4)


@pytest.mark.parametrize("head", PRESETS.values(), ids=PRESETS)
@torch.no_grad()
def test_outputs_are_bit_identical(
    case: HostCase, make_head: MakeHead, head: dict[str, Any]
) -> None:
    host, x = case.host(), case.pixels()
    alone = case.run(host, x)
    with attached(case, host, make_head, **head) as plugin:
        beside = case.run(host, x)
        assert plugin.depth.shape == (case.views // case.passes, 1, 32, 32)
        again = case.run(host, x)
    after = case.run(host, x)
    assert alone
    assert all(same(alone, outputs) for outputs in (beside, again, after))


@pytest.mark.parametrize(
    "case", [case for case in PRESENT if case.inputs is not None], ids=lambda case: case.name
)
def test_generate(case: HostCase, make_head: MakeHead) -> None:
    """The same tokens, and one map for each view, from the one pass of that prompt."""
    assert case.inputs is not None
    host: Any = case.host()
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    inputs = case.inputs(case.pixels())
    alone = host.generate(**inputs, **options)
    with attached(case, host, make_head) as plugin:
        assert torch.equal(host.generate(**inputs, **options), alone)
        assert plugin.depth.shape == (case.views, 1, 32, 32)
        expected = plugin(case.pixels()).detach()
        torch.testing.assert_close(plugin.depth, expected, rtol=0, atol=1e-5)
    assert torch.equal(host.generate(**inputs, **options), alone)


def fingerprint(host: nn.Module) -> dict[str, Any]:
    """All that attach and detach must leave as it was."""
    hooks = {
        name: {
            key: len(table)
            for key, table in vars(module).items()
            if "_hooks" in key and isinstance(table, dict)
        }
        for name, module in host.named_modules()
    }
    return {
        "hooks": hooks,
        "keys": list(host.state_dict()),
        "values": [x.double().sum().item() for x in host.state_dict().values()],
        "modes": [module.training for module in host.modules()],
        "attributes": {name: sorted(vars(module)) for name, module in host.named_modules()},
        "grads": [p.requires_grad for p in host.parameters()],
    }


def rng_state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


def test_detach_leaves_nothing(case: HostCase, make_head: MakeHead) -> None:
    host, x = case.host(), case.pixels()
    norms = (m for m in host.modules() if type(m).__name__.endswith("Norm"))
    next(norms).train()  # a mode of its own
    case.run(host, x)  # transformers puts hooks of its own on, on first use
    head = make_head(host, tower=case.choose)
    before, rng = fingerprint(host), rng_state()
    for _ in range(2):
        with attach(host, head, tower=case.choose) as plugin, torch.no_grad():
            case.run(host, x)
            _ = plugin.depth
            assert fingerprint(host)["keys"] == before["keys"]
            assert fingerprint(host)["modes"] == before["modes"]
        assert fingerprint(host) == before
    assert rng_state() == rng


def test_detach_after_an_exception_in_the_host(case: HostCase, make_head: MakeHead) -> None:
    host, x = case.host(), case.pixels()
    case.run(host, x)
    head, before = make_head(host, tower=case.choose), fingerprint(host)

    def fail(*_: Any) -> None:
        raise RuntimeError("the host's own")

    failing = choose_tower(host, case.choose).blocks[2].register_forward_hook(fail)
    plugin = attach(host, head, tower=case.choose)
    with pytest.raises(RuntimeError, match="the host's own"), plugin:
        case.run(host, x)
    failing.remove()
    with pytest.raises(NoDepthError, match=r"did not fire: .*level"):
        _ = plugin.depth
    assert fingerprint(host) == before


@torch.no_grad()
def test_plugin_is_a_module_that_runs_the_tower_alone(case: HostCase, make_head: MakeHead) -> None:
    host, x = case.host(), case.pixels()
    with attached(case, host, make_head) as plugin:
        with plugin.capture() as seen:
            case.run(host, x)
        expected, last = torch.cat([one.depth for one in seen]), plugin.depth
        torch.testing.assert_close(plugin(x, **case.tower_kwargs), expected, rtol=0, atol=1e-5)
        other = plugin(case.pixels(seed=7), **case.tower_kwargs)
        assert not torch.allclose(other, expected)
        assert torch.equal(plugin.depth, last)  # left alone
    with torch.enable_grad():
        detached = plugin(x, **case.tower_kwargs)
    torch.testing.assert_close(detached.detach(), expected, rtol=0, atol=1e-5)
    assert detached.requires_grad


def test_gradients_reach_the_head_and_never_the_tower(case: HostCase, make_head: MakeHead) -> None:
    host, x = case.host(), case.pixels()
    with attached(case, host, make_head) as plugin:
        head = plugin.head.train()
        plugin(x, **case.tower_kwargs).mean().backward()
        with plugin.capture() as seen:
            case.run(host, x)
        head(one_size(seen[-1].features), (8, 8)).mean().backward()
    assert all(p.grad is None for p in host.parameters())
    missed = [name for name, p in head.named_parameters() if p.grad is None]
    assert all(name.startswith("decoder.auxiliary") for name in missed), missed


def test_the_hosts_autograd_graph_is_unchanged(case: HostCase, make_head: MakeHead) -> None:
    """Gradients of the host's own loss are bit for bit the same."""
    host, x = case.host(), case.pixels()
    gradients = []
    for beside in (False, True):
        host.zero_grad()
        with attached(case, host, make_head) if beside else nullcontext() as plugin:
            case.run(host, x)[0].float().sum().backward()
            gradients.append(
                [p.grad if p.grad is None else p.grad.clone() for p in host.parameters()]
            )
            assert plugin is None or plugin.depth.isfinite().all()
    for alone, with_us in zip(*gradients, strict=True):
        assert (alone is None) == (with_us is None)
        assert alone is None or with_us is None or torch.equal(alone, with_us)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hosts_without_gradients(
    mode: Callable[[], Any], case: HostCase, make_head: MakeHead
) -> None:
    host, x = case.host(), case.pixels()
    with attached(case, host, make_head) as plugin:
        with mode(), plugin.capture() as seen:
            case.run(host, x)
        features = one_size(seen[-1].features)
        plugin.head(features).mean().backward()  # needs tensors that autograd may save
        assert plugin.head.get_parameter("decoder.readout.to_depth.weight").grad is not None
        with mode():
            depth = plugin.depth
    assert not depth.requires_grad
    assert not depth.is_inference()
