"""generate() and sample_actions() with the plug-in attached: prompts, caches, pictures or none."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.prompts import continues
from clipdepth_plugin.errors import NoDepthError
from tests.tiny.policies import pi0_inputs
from tests.tiny.table import BY_NAME

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]
MakePrompt = Callable[..., dict[str, Tensor]]

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def cache_name(host: Any) -> str:
    """What this release of transformers calls the cache."""
    return "cache" if "cache" in inspect.signature(host.forward).parameters else "past_key_values"


@pytest.mark.parametrize("name", ["llava", "paligemma"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("use_cache", [True, False])
def test_one_map_for_each_image_from_one_tower_pass(
    name: str,
    batch: int,
    use_cache: bool,
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: MakePrompt,
) -> None:
    host: Any = make_host(name)
    inputs = {"pixel_values": make_pixels(batch=batch), **make_prompt(batch)}
    options = {**OPTIONS, "use_cache": use_cache}
    alone = host.generate(**inputs, **options)
    with attach(host, make_head(host)) as plugin:
        with plugin.capture() as seen:
            beside = host.generate(**inputs, **options)
        assert torch.equal(alone, beside)
        # transformers 4.57 runs the tower again for each token where there is no cache.
        assert len(seen) == 1 or (len(seen) == 4 and not use_cache)
        assert plugin.depth.shape == (batch, 1, 32, 32)
        assert len(plugin.depths) == batch
        torch.testing.assert_close(
            plugin.depth, plugin(inputs["pixel_values"]).detach(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_text_only_prompt_gives_no_map_and_never_an_old_one(
    name: str,
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: MakePrompt,
) -> None:
    host: Any = make_host(name)
    with attach(host, make_head(host)) as plugin:
        host.generate(**make_prompt(1, pictures=False), **OPTIONS)
        with pytest.raises(NoDepthError, match="the prompt had no picture"):
            _ = plugin.depth
        host.generate(pixel_values=make_pixels(batch=1), **make_prompt(1), **OPTIONS)
        first = plugin.depth
        with plugin.capture() as seen:
            host.generate(**make_prompt(1, pictures=False), **OPTIONS)
        assert seen == []
        with pytest.raises(NoDepthError, match="another forward since its last tower pass"):
            _ = plugin.depth
        host.generate(pixel_values=make_pixels(batch=1), **make_prompt(1), **OPTIONS)
        assert torch.equal(plugin.depth, first)


def test_going_on_with_a_conversation_keeps_its_picture(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """A second turn after a filled cache is about the same picture."""
    host: Any = make_host("llava")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        first = host(pixel_values=make_pixels(batch=1), **make_prompt(1), use_cache=True)
        depth = plugin.depth
        cache = cache_name(host)
        host(input_ids=torch.tensor([[5, 6]]), **{cache: first[cache]})
        assert torch.equal(plugin.depth, depth)


@pytest.mark.parametrize("way", ["generate", "forward"])
def test_a_kept_prefix_is_no_picture(
    way: str,
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: MakePrompt,
) -> None:
    """A system prompt's cache is copied for each request: one with a picture, one without."""
    if way == "generate" and transformers.__version__.startswith("4."):
        pytest.skip("transformers 4 itself drops the picture of a prompt after a cache")
    host: Any = make_host("llava")
    name, system = cache_name(host), torch.tensor([[7, 8, 9]])
    text = torch.cat([system, make_prompt(1, pictures=False)["input_ids"]], dim=1)
    asked = torch.cat([system, make_prompt(1)["input_ids"]], dim=1)
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        kept = host(input_ids=system, use_cache=True)[name]

        def ask(ids: Tensor, **more: Any) -> Any:
            prefix = copy.deepcopy(kept)
            if way == "generate":
                host.generate(input_ids=ids, **{name: prefix}, **more, **OPTIONS)
            else:
                host(input_ids=ids[:, 3:], **{name: prefix}, **more)
            return prefix

        for _ in range(2):
            ask(asked, pixel_values=make_pixels(batch=1))
            assert plugin.depth.shape == (1, 1, 32, 32)
            ask(text)
            with pytest.raises(NoDepthError, match="another forward"):
                _ = plugin.depth
            picture = ask(asked, pixel_values=make_pixels(batch=1))
            rest = text[:, 3:]
            host(input_ids=rest, **{name: copy.deepcopy(picture)})  # asked again, of a copy
            assert plugin.depth.shape == (1, 1, 32, 32)
            host(input_ids=rest, **{name: copy.deepcopy(kept)})
            with pytest.raises(NoDepthError, match="another forward"):
                _ = plugin.depth


def test_conversations_that_take_turns(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """One has a long cache and no picture; the picture that came after is not its."""
    host: Any = make_host("llava")
    name, text = cache_name(host), make_prompt(1, pictures=False)
    talk, shown = transformers.DynamicCache(), transformers.DynamicCache()
    given = {"pixel_values": make_pixels(batch=1), **make_prompt(1)}
    token = {"input_ids": torch.tensor([[5]])}
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        host(**text, **{name: talk})
        for _ in range(20):
            host(input_ids=text["input_ids"], **{name: talk})
        host(**given, **{name: shown})
        host(**token, **{name: shown})
        assert plugin.depth.shape == (1, 1, 32, 32)
        host(**token, **{name: talk})
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth
        host(**given, **{name: talk})  # now it has one, too
        host(**token, **{name: talk})
        assert plugin.depth.shape == (1, 1, 32, 32)


def test_two_pictures_take_turns(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """Going on with the first one's conversation never reads the second one's map."""
    host: Any = make_host("llava")
    name, token = cache_name(host), {"input_ids": torch.tensor([[5]])}
    first, second = transformers.DynamicCache(), transformers.DynamicCache()
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        for cache in (first, second):
            host(pixel_values=make_pixels(batch=1), **make_prompt(1), **{name: cache})
            host(**token, **{name: cache})
            assert plugin.depth.shape == (1, 1, 32, 32)
        for _ in range(2):
            host(**token, **{name: first})
            with pytest.raises(NoDepthError, match="another forward"):
                _ = plugin.depth


def test_a_cache_that_loses_its_last_token(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """Asked again from the last token on: of its own cache, a copy, one that the host made."""
    host: Any = make_host("llava")
    name, own = cache_name(host), transformers.DynamicCache()
    given = {"pixel_values": make_pixels(batch=1), **make_prompt(1)}
    token = {"input_ids": given["input_ids"][:, -1:]}
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        made = host(**given, use_cache=True)[name]
        made.crop(-1)
        host(**token, **{name: made})
        assert plugin.depth.shape == (1, 1, 32, 32)
        host(**given, **{name: own})
        for cache in (copy.deepcopy(own), own):
            cache.crop(-1)
            host(**token, **{name: cache})
            assert plugin.depth.shape == (1, 1, 32, 32)


def test_a_cache_may_be_shorter_than_its_prompt(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """A decoder's beside an encoder, whose prompt is the encoder's; one that drops tokens."""
    host: Any = make_host("llava")
    given = {"pixel_values": make_pixels(batch=1), **make_prompt(1)}
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        host(**given, use_cache=True)
        short = transformers.DynamicCache()
        for layer in range(2):
            short.update(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8), layer)
        host(input_ids=torch.tensor([[5]]), **{cache_name(host): short})
        assert plugin.depth.shape == (1, 1, 32, 32)


@pytest.mark.parametrize("part", ["tower", "forward"])
def test_a_compiled_part_keeps_its_conversation(
    part: str,
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: MakePrompt,
) -> None:
    """What a hook sees in compiled code is told at the next forward."""
    host: Any = make_host("llava")
    name, cache = cache_name(host), transformers.DynamicCache()
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        if part == "tower":
            host.model.vision_tower.compile(backend="eager")
        else:
            host.forward = torch.compile(host.forward, backend="eager")
        host(pixel_values=make_pixels(batch=1), **make_prompt(1), **{name: cache})
        depth = plugin.depth
        for _ in range(2):
            host(input_ids=torch.tensor([[5]]), **{name: cache})
            assert torch.equal(plugin.depth, depth)


class _States:
    """A cache of states, as a Mamba's, or one that wants to know the layer."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def get_seq_length(self) -> int:
        raise self.error("get_seq_length: layer_idx")


@pytest.mark.parametrize("error", [ValueError, TypeError, NotImplementedError])
def test_a_cache_that_does_not_tell_its_length(error: type[Exception]) -> None:
    """The host must not see our question: one new token goes on, a prompt is a new one."""
    cache = {"past_key_values": _States(error)}
    assert continues(torch.ones(2, 1), cache)
    assert not continues(torch.ones(2, 5), cache)


def test_a_part_of_the_host_run_alone_is_noticed(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    host: Any = make_host("llava")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        host(pixel_values=make_pixels(batch=1), **make_prompt(1))
        _ = plugin.depth
        host.model(**make_prompt(1, pictures=False))
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth


def test_an_interrupted_prompt_leaves_no_depth_to_the_next(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    """Torch runs no hook after a KeyboardInterrupt; the next prompt is noticed all the same."""
    host: Any = make_host("llava")
    picture = {"pixel_values": make_pixels(batch=1), **make_prompt(1)}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        handle = host.model.language_model.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            host(**picture)
        handle.remove()
        host(**picture)
        _ = plugin.depth
        host(**make_prompt(1, pictures=False))
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth


class _Wrapper(nn.Module):
    """A module of a host's that holds the tower and nothing else, and may leave it out."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor | None) -> Tensor | None:
        return None if pixels is None else self.tower(pixels).last_hidden_state


def test_a_wrapper_of_the_tower_is_no_prompt(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """A host may run its tower by a wrapper before its own forward, which then claims that pass."""

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = _Wrapper(make_host("hf_clip_vision"))
            self.language = nn.Linear(32, 2)

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            said: Tensor = self.language(inputs_embeds)
            return said

    host = Host()
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        seen = host.vision(make_pixels())
        host(inputs_embeds=seen)
        assert plugin.depth.shape == (2, 1, 32, 32)
        host(inputs_embeds=seen)
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth
        host.vision(make_pixels())
        _ = plugin.depth
        assert host.vision(None) is None
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth


def test_compiled_host_and_a_text_only_prompt(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    from transformers import DynamicCache

    host: Any = make_host("llava")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        host.compile(backend="eager")
        picture = {"pixel_values": make_pixels(batch=1), **make_prompt(1)}
        host(**picture, **{cache_name(host): DynamicCache()})
        assert plugin.depth.shape == (1, 1, 32, 32)
        host(**make_prompt(1, pictures=False), **{cache_name(host): DynamicCache()})
        with pytest.raises(NoDepthError, match="another forward"):
            _ = plugin.depth
    torch._dynamo.reset()


def test_capture_collects_every_pass_in_order(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels, make_prompt: MakePrompt
) -> None:
    host: Any = make_host("paligemma")
    pictures = [make_pixels(seed=seed, batch=1) for seed in range(3)]
    with attach(host, make_head(host)) as plugin:
        with plugin.capture() as seen:
            for picture in pictures:
                host.generate(pixel_values=picture, **make_prompt(1), **OPTIONS)
        assert len(seen) == 3
        for one, picture in zip(seen, pictures, strict=True):
            torch.testing.assert_close(one.depth, plugin(picture).detach(), rtol=0, atol=1e-6)
        with plugin.capture() as later:
            host.generate(pixel_values=pictures[0], **make_prompt(1), **OPTIONS)
        assert (len(seen), len(later)) == (3, 1)


@pytest.mark.skipif(BY_NAME["pi0"].absent, reason="this transformers has no PI0")
def test_a_policys_denoising_steps_keep_the_depth_of_its_cameras(
    make_host: MakeHost, make_head: MakeHead
) -> None:
    """PI0 runs its tower, then a root forward for each step with the cache of what was seen."""
    host: Any = make_host("pi0")
    inputs = pi0_inputs(BY_NAME["pi0"].pixels())
    alone = host.sample_actions(**inputs, num_steps=3)
    with attach(host, make_head(host)) as plugin:
        with plugin.capture() as seen:
            assert torch.equal(host.sample_actions(**inputs, num_steps=3), alone)
        assert len(seen) == 1
        expected = plugin(inputs["pixel_values"].flatten(0, 1)).detach()
        torch.testing.assert_close(plugin.depth, expected, rtol=0, atol=1e-6)
