"""DepthTokens: added to a host's visual tokens, trained, saved, and taken off again."""

from __future__ import annotations

import copy
import gc
import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthPlugin, DepthTokens, attach
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import (
    ConfigError,
    HeadFileError,
    HeadMismatchError,
    HostError,
    NoDepthError,
)
from clipdepth_plugin.plugin.depth_tokens_config import DepthTokensConfig
from tests.tiny.case import HostCase
from tests.tiny.coordinates import present
from tests.tiny.heads import small_head
from tests.tiny.table import BY_NAME

FOCAL = 30.0
HOSTS = (
    *("llava", "llava_next", "paligemma", "gemma3", "smolvlm", "internvl", "pi0"),
    *("lerobot_pi0", "lerobot_smolvla"),
)


def plugged(case: HostCase, host: nn.Module, **options: Any) -> DepthPlugin:
    return attach(host, small_head(host, context="mean", confidence=True, **options))


def stir(tokens: DepthTokens) -> None:
    """As if it were trained."""
    torch.manual_seed(5)
    nn.init.normal_(tokens.project.weight)
    nn.init.normal_(tokens.project.bias)


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    """-0.0 is not 0.0 here."""
    return all(
        torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))
        for one, other in zip(first, second, strict=True)
    )


@pytest.fixture
def llava() -> nn.Module:
    return BY_NAME["llava"].host()


@pytest.fixture
def run(llava: nn.Module) -> Any:
    """Logits of the LLaVA for pixels."""
    return lambda seed=1: BY_NAME["llava"].run(llava, BY_NAME["llava"].pixels(seed))[0]


@pytest.mark.parametrize("name", HOSTS)
def test_at_first_bit_for_bit_then_not_then_gone(name: str) -> None:
    case = BY_NAME[name]
    if case.absent:
        pytest.skip("this transformers lacks it")
    host, pixels = case.host(), case.pixels()
    state = list(host.state_dict())
    with torch.no_grad():
        alone = case.run(host, pixels)
        plugin = plugged(case, host)
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        rng = torch.get_rng_state()
        with plugin.capture() as seen:
            assert same_bits(case.run(host, pixels), alone)
        assert torch.equal(rng, torch.get_rng_state())
        assert len(seen) == case.passes
        assert all(one.depth.isfinite().all() for one in seen)
        stir(tokens)
        assert not torch.equal(case.run(host, pixels)[0], alone[0])
        assert list(host.state_dict()) == state
        tokens.detach()
        assert same_bits(case.run(host, pixels), alone)
        plugin.detach()
        assert same_bits(case.run(host, pixels), alone)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "mistral3"])
def test_packed_hosts(name: str) -> None:
    """Each view gets what its own tokens make, in the order of the language model's tokens."""
    case = present(name)
    host = case.host()
    packed = case.pack(case.pictures())
    with torch.no_grad():
        alone = _features(case.run(host, packed))
        plugin = attach(host, small_head(host, context="mean"))
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        assert same_bits([_features(case.run(host, packed))], [alone])
        stir(tokens)
        added = _features(case.run(host, packed)) - alone
        expected = [tokens(one[None])[0] for one in plugin.tokens("host", focal_px=FOCAL)]
    rows = torch.cat(expected)
    if name != "smolvlm":  # whose padded squares are tokens of the host's, too, and stay
        torch.testing.assert_close(added.view_as(rows), rows, rtol=1e-4, atol=1e-4)
    assert int((added.abs().sum(dim=-1) > 1e-4).sum()) == len(rows)


def _features(out: Any) -> Tensor:
    out = getattr(out, "pooler_output", out)
    return out if isinstance(out, Tensor) else torch.cat([one.flatten(0, -2) for one in out])


def test_negative_zeros_of_the_host_stay(llava: nn.Module, run: Any) -> None:
    projector = cast("Any", llava).model.multi_modal_projector
    nn.init.zeros_(projector.linear_2.weight)
    given: list[Tensor] = []
    projector.register_forward_hook(lambda _, __, out: -out * 0.0)
    with torch.no_grad(), attach(llava, small_head(llava, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        projector.register_forward_hook(lambda _, __, out: given.append(out))
        run()
    assert tokens.attached
    assert torch.signbit(given[0]).all()


@pytest.mark.parametrize("mode", ["frozen", "tower without gradients", "training"])
def test_it_trains_and_the_tower_does_not(llava: nn.Module, run: Any, mode: str) -> None:
    tower = choose_tower(llava).module
    llava.requires_grad_(mode != "frozen")
    llava.train(mode == "training")
    if mode == "tower without gradients":
        forward = tower.forward
        tower.forward = torch.no_grad()(forward)
    with attach(llava, small_head(llava, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        first = -run().log_softmax(dim=-1)[..., 7].mean()
        optimiser = torch.optim.AdamW(tokens.parameters(), 1e-3)
        for _ in range(4):
            loss = -run().log_softmax(dim=-1)[..., 7].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss < first
        assert all(p.grad is not None and p.grad.isfinite().all() for p in tokens.parameters())
        assert any(bool(p.grad.any()) for p in tokens.embed.parameters() if p.grad is not None)
        assert all(p.grad is None for p in plugin.head.parameters())
    has = [p.grad is not None for p in tower.parameters()]
    assert any(has) == (mode == "training")


def test_gradient_of_the_tower_is_that_without_it(llava: nn.Module, run: Any) -> None:
    """Depth is read without a graph, so that at first the tower's gradient is the same."""
    run().square().mean().backward()
    alone = {name: p.grad.clone() for name, p in llava.named_parameters() if p.grad is not None}
    llava.zero_grad()
    with attach(llava, small_head(llava, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        run().square().mean().backward()
        assert tokens.attached
    for name, parameter in llava.named_parameters():
        if name in alone:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, alone[name])


@pytest.mark.parametrize("around", ["blocks", "tower and connector"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(around: str, reentrant: bool) -> None:
    """As transformers checkpoints blocks, and LeRobot's pi0 all that embeds a camera."""
    case = BY_NAME["lerobot_pi0"]
    host, pixels = case.host(), case.pixels()
    host.train()
    with attach(host, small_head(host, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        stir(tokens)
        case.run(host, pixels)[0].square().mean().backward()
        plain = [cast("Tensor", p.grad).clone() for p in tokens.parameters()]
        tokens.zero_grad()
        experts = cast("Any", host).model.paligemma_with_expert
        if around == "blocks":
            options = {"use_reentrant": reentrant}
            enable = getattr(experts.paligemma, "activation_checkpointing_enable", None)
            (enable or experts.paligemma.gradient_checkpointing_enable)(options)
        else:
            embed = experts.embed_image
            experts.embed_image = lambda image: torch.utils.checkpoint.checkpoint(
                embed, image.requires_grad_(reentrant), use_reentrant=reentrant
            )
        with torch.no_grad(), tokens.cameras((30.0, 30.0, 16.0, 16.0), (40.0, 40.0, 16.0, 16.0)):
            case.run(host, pixels)  # an evaluation: what is said in it ends with it
        case.run(host, pixels)[0].square().mean().backward()
        for one, parameter in zip(plain, tokens.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, one)
        if around != "blocks":
            with tokens.cameras((30.0, 30.0, 16.0, 16.0), (40.0, 40.0, 16.0, 16.0)):
                loss = case.run(host, pixels)[0].square().mean()
                with pytest.raises(HostError, match="out of the cameras' order"):
                    loss.backward()


def test_cameras_of_several_passes() -> None:
    case = BY_NAME["lerobot_smolvla"]
    host, pixels = case.host(), case.pixels()
    front, wrist = (30.0, 30.0, 16.0, 16.0), (50.0, 40.0, 10.0, 16.0)
    with torch.no_grad(), attach(host, small_head(host, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, intrinsics=front)
        stir(tokens)
        added: list[Tensor] = []
        tokens.register_forward_hook(lambda _, args, __: added.append(args[0]))
        with plugin.capture() as seen, tokens.cameras(front, wrist):
            case.run(host, pixels)
            case.run(host, pixels)
        case.run(host, pixels)
        expected = [
            one.tokens(2, intrinsics=k) for one, k in zip(seen, (front, wrist) * 2, strict=True)
        ]
        expected += [one.tokens(2, intrinsics=front) for one in seen[:2]]
        for one, other in zip(added, expected, strict=True):
            assert torch.equal(one[..., 2:], cast("Tensor", other)[..., 2:])
        with pytest.raises(HostError, match="one for each tower pass"), tokens.cameras():
            pass


def test_generation_text_and_another_thread(llava: nn.Module) -> None:
    case = BY_NAME["llava"]
    assert case.inputs is not None
    pictures = case.inputs(case.pixels())
    words = {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3).long()}
    host = cast("Any", llava)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        text, seen = host.generate(**words, **options), host.generate(**pictures, **options)
        with attach(llava, small_head(llava, context="mean")) as plugin:
            tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
            assert torch.equal(host.generate(**pictures, **options), seen)
            stir(tokens)
            assert torch.equal(host.generate(**words, **options), text)
            assert host.generate(**pictures, **options, num_beams=2).shape[0] == 2
            here = host(**pictures).logits
            there: list[Tensor] = []

            def elsewhere() -> None:
                with torch.inference_mode():
                    there.append(host(**pictures).logits)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert torch.equal(there[0], here)
            plugin(case.pixels())  # the tower alone; the connector may be inside


def test_saved_and_loaded_alone(llava: nn.Module, run: Any, tmp_path: Path) -> None:
    with torch.no_grad(), attach(llava, small_head(llava, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin, hidden=32)
        stir(tokens)
        with tokens.attach(plugin, focal_px=FOCAL):
            expected = run()
            copied = copy.deepcopy(tokens)
            assert not copied.attached
        tokens.save_pretrained(tmp_path / "saved")
        assert sorted(one.name for one in (tmp_path / "saved").iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
        loaded = DepthTokens.from_pretrained(tmp_path / "saved")
        assert loaded.config == tokens.config
        for one in (loaded, copied):
            with one.attach(plugin, focal_px=FOCAL):
                assert torch.equal(run(), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 64}, "another shape"),
        ({"width": 2**17}, "width"),
        ({"bands": 3}, "no such field"),
        ({"shortest": 30.0}, "below shortest"),
        ({"camera": 1.5}, "camera"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    DepthTokens(DepthTokensConfig(width=32, hidden=16)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises((HeadFileError, ConfigError), match=said):
        DepthTokens.from_pretrained(tmp_path)
    with pytest.raises(HeadFileError):
        DepthTokens.from_pretrained(tmp_path / "nowhere")


def test_what_is_refused(llava: nn.Module, run: Any) -> None:
    head = small_head(llava, context="mean")
    with torch.no_grad(), attach(llava, head) as plugin:
        tokens = DepthTokens.for_plugin(plugin)
        with pytest.raises(HostError, match="plugin: got a Llava"):
            DepthTokens.for_plugin(cast("Any", llava))
        with pytest.raises(ConfigError, match="no such field"):
            DepthTokens.for_plugin(plugin, bands=3)
        with pytest.raises(HeadMismatchError, match="does not predict"):
            DepthTokens.for_plugin(plugin, confidence=True).attach(plugin)
        with pytest.raises(HeadMismatchError, match="width 31"):
            DepthTokens.for_plugin(plugin, width=31).attach(plugin)
        with pytest.raises(HostError, match="no module 'projector'"):
            tokens.attach(plugin, connector="projector")
        with tokens.attach(plugin):
            with pytest.raises(HeadMismatchError, match="attached already"):
                tokens.attach(plugin)
            with pytest.raises(HostError, match="need a camera"):
                run()
        with DepthTokens.for_plugin(plugin, camera=False).attach(plugin):
            run()
            with pytest.raises(NoDepthError, match="ran again without its tower"):
                cast("Any", llava).model.multi_modal_projector(torch.zeros(2, 16, 32))
            plugin.detach()
            with pytest.raises(NoDepthError, match="is detached"):
                run()
    relative = small_head(llava, context="mean", metric=False)
    with attach(llava, relative) as plugin, pytest.raises(HeadMismatchError, match="relative"):
        DepthTokens.for_plugin(plugin, camera=True).attach(plugin)


def test_collected_they_detach_and_a_copied_host_has_none(llava: nn.Module, run: Any) -> None:
    with torch.no_grad(), attach(llava, small_head(llava, context="mean")) as plugin:
        alone = run()
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        stir(tokens)
        case = BY_NAME["llava"]
        assert torch.equal(case.run(copy.deepcopy(llava), case.pixels())[0], alone)
        assert not torch.equal(run(), alone)
        del tokens
        gc.collect()
        assert torch.equal(run(), alone)


def test_no_depth_adds_nothing_and_low_precision(llava: nn.Module) -> None:
    case = BY_NAME["llava"]
    pixels = case.pixels()
    pixels[1] = 0.5
    with torch.no_grad(), attach(llava, small_head(llava, context="mean")) as plugin:
        alone = case.run(llava, pixels)[0]
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        stir(tokens)
        with_depth = case.run(llava, pixels)[0]
        assert torch.equal(with_depth[1], alone[1])
        assert not torch.equal(with_depth[0], alone[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert case.run(llava, pixels)[0].isfinite().all()
        tokens.to(torch.bfloat16)
        assert case.run(llava, pixels)[0].isfinite().all()


def test_compiled_after_attaching(llava: nn.Module, run: Any) -> None:
    case = BY_NAME["llava"]
    with torch.no_grad(), attach(llava, small_head(llava, context="mean")) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=FOCAL)
        stir(tokens)
        eager = run()
        compiled = torch.compile(llava, backend="eager")
        assert case.inputs is not None
        out = compiled(**case.inputs(case.pixels())).logits
    torch.testing.assert_close(out, eager)
