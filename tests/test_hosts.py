"""Every host in the table: found, read right, and not touched."""

from __future__ import annotations

import copy
import io
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.errors import NoDepthError

if TYPE_CHECKING:
    from tests.conftest import HostCase

MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


def test_tower_is_found(case: HostCase) -> None:
    (tower,) = find_towers(case.host())
    assert (tower.path, tower.family) == (case.tower, case.family)
    assert (tower.depth, tower.width, tower.patch_size) == (4, 32, (8, 8))
    assert (tower.num_prefix_tokens, tower.contexts) == (case.prefix, case.contexts)
    assert (tower.image_size, tower.grid) == ((32, 32), (4, 4))
    assert tower.sequence_first == (case.name == "openai_clip")


def test_levels_are_the_librarys_own(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """Each tapped level equals ``output_hidden_states`` / ``forward_intermediates(norm=False)``."""
    host, x = case.host(), make_pixels()
    for kind in case.contexts:
        head = make_head(
            host, context=kind, semantic_levels=(4, 3, 2, 1), structural_levels=(2, 1, 0)
        )
        with torch.no_grad(), attach(host, head) as plugin, plugin.capture() as seen:
            case.run(host, x)
            features = seen[-1].features
            expected = case.levels(host, x)
        assert sorted(features.levels) == [0, 1, 2, 3, 4]
        for level, tokens in features.levels.items():
            torch.testing.assert_close(
                tokens, expected[level][:, case.prefix :], rtol=0, atol=1e-6, msg=f"level {level}"
            )
        assert features.context is not None
        if kind == "cls":
            torch.testing.assert_close(features.context, expected[4][:, 0], rtol=0, atol=1e-6)
        elif kind == "mean":
            mean = expected[4][:, case.prefix :].mean(dim=1)
            torch.testing.assert_close(features.context, mean, rtol=0, atol=1e-6)
        else:
            assert case.pooled is not None
            with torch.no_grad():
                pooled = case.pooled(host, x)
            torch.testing.assert_close(features.context, pooled, rtol=0, atol=1e-5)


def test_outputs_are_bit_identical(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    head = make_head(host)
    with torch.no_grad():
        alone = case.run(host, x)
        with attach(host, head) as plugin:
            beside = case.run(host, x)
            assert plugin.depth.shape == (2, 1, 32, 32)
            again = case.run(host, x)
        after = case.run(host, x)
    for outputs in (beside, again, after):
        assert len(outputs) == len(alone)
        assert all(torch.equal(one, other) for one, other in zip(alone, outputs, strict=True))


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


def test_detach_leaves_nothing(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    head = make_head(host)
    next(m for m in host.modules() if isinstance(m, nn.LayerNorm)).train()  # a mode of its own
    case.run(host, x)  # transformers puts hooks of its own on, on first use
    before, rng = fingerprint(host), rng_state()
    for _ in range(2):
        with attach(host, head) as plugin, torch.no_grad():
            case.run(host, x)
            _ = plugin.depth
            assert fingerprint(host)["keys"] == before["keys"]
            assert fingerprint(host)["modes"] == before["modes"]
        assert fingerprint(host) == before
    assert rng_state() == rng


def test_detach_after_an_exception_in_the_host(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    case.run(host, x)
    head, before = make_head(host), fingerprint(host)

    def fail(*_: Any) -> None:
        raise RuntimeError("the host's own")

    (tower,) = find_towers(host)
    failing = tower.blocks[2].register_forward_hook(fail)
    plugin = attach(host, head)
    with pytest.raises(RuntimeError, match="the host's own"), plugin:
        case.run(host, x)
    failing.remove()
    with pytest.raises(NoDepthError, match=r"did not fire: .*level"):
        _ = plugin.depth
    assert fingerprint(host) == before


def test_plugin_is_a_module_that_runs_the_tower_alone(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    head = make_head(host)
    with torch.no_grad(), attach(host, head) as plugin:
        case.run(host, x)
        expected = plugin.depth
        torch.testing.assert_close(plugin(x), expected, rtol=0, atol=1e-6)
        other = plugin(make_pixels(seed=7))
        assert not torch.allclose(other, expected)
        assert torch.equal(plugin.depth, expected)  # left alone
    detached = plugin(x)
    torch.testing.assert_close(detached, expected, rtol=0, atol=1e-6)
    assert detached.requires_grad


def test_gradients_reach_the_head_and_never_the_tower(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    head = make_head(host).train()
    with attach(host, head) as plugin:
        plugin(x).mean().backward()
        with plugin.capture() as seen:
            case.run(host, x)
        head(seen[-1].features, (8, 8)).mean().backward()
    assert all(p.grad is None for p in host.parameters())
    missed = [name for name, p in head.named_parameters() if p.grad is None]
    assert all(name.startswith("decoder.auxiliary") for name in missed), missed


def test_the_hosts_autograd_graph_is_unchanged(
    case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """Gradients of the host's own loss are bit for bit the same."""
    host, x = case.host(), make_pixels()
    gradients = []
    for attached in (False, True):
        host.zero_grad()
        plugin = attach(host, make_head(host)) if attached else None
        case.run(host, x)[0].float().sum().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in host.parameters()])
        if plugin is not None:
            assert plugin.depth.shape == (2, 1, 32, 32)
            plugin.detach()
    for alone, beside in zip(*gradients, strict=True):
        assert (alone is None) == (beside is None)
        assert alone is None or beside is None or torch.equal(alone, beside)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hosts_without_gradients(
    mode: Callable[[], Any], case: HostCase, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host, x = case.host(), make_pixels()
    head = make_head(host)
    with attach(host, head) as plugin:
        with mode(), plugin.capture() as seen:
            case.run(host, x)
        features = seen[-1].features
        head(features).mean().backward()  # needs tensors that autograd may save
        assert head.get_parameter("decoder.readout.to_depth.weight").grad is not None
        with mode():
            depth = plugin.depth
    assert not depth.requires_grad
    assert not depth.is_inference()


_STRANGER = """
import pickle, sys
sys.modules["clipdepth_plugin"] = None
host = pickle.load(open(sys.argv[1], "rb"))
import torch
torch.manual_seed(1)
host(torch.zeros(1, 3, 32, 32))
print("clean" if not [m for m in sys.modules if m.startswith("clipdepth_plugin.")] else "ours")
"""


def test_copies_carry_nothing_of_ours(
    make_host: Callable[[str], nn.Module],
    make_head: MakeHead,
    make_pixels: MakePixels,
    tmp_path: Path,
) -> None:
    host, x = make_host("timm"), make_pixels()
    plain = len(pickle.dumps(host))
    with attach(host, make_head(host)) as plugin:
        host(x)
        twin = copy.deepcopy(host)
        pickled = pickle.dumps(host)
        saved = io.BytesIO()
        torch.save(host, saved)
        assert b"clipdepth" not in pickled
        assert b"clipdepth" not in saved.getvalue()
        assert len(pickled) < plain + 5_000
        assert torch.equal(twin(make_pixels(seed=5)), host(make_pixels(seed=5)))
        expected = plugin.depth
        twin(x)  # does not write into our plug-in
        assert torch.equal(plugin.depth, expected)
    (tmp_path / "host.pkl").write_bytes(pickled)
    run = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(tmp_path / "host.pkl")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.stdout.strip() == "clean", run.stderr


@pytest.mark.parametrize("name", ["hf_clip_vision", "llava"])
def test_save_pretrained_of_an_attached_host(
    name: str,
    make_host: Callable[[str], nn.Module],
    make_head: MakeHead,
    tmp_path: Path,
) -> None:
    host: Any = make_host(name)
    with attach(host, make_head(host)):
        host.save_pretrained(tmp_path)
    loaded = type(host).from_pretrained(tmp_path)
    assert list(loaded.state_dict()) == list(host.state_dict())
