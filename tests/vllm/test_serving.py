"""Depth by request and picture, in the real engine."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import ClipDepthError, NoDepthError
from clipdepth_plugin.serving.endpoint import answer
from clipdepth_plugin.serving.vllm import EXTENSION, generate_with_depth, pictures_of
from tests.vllm.engines import answers, engine, host_of, picture, prompt, said
from tests.vllm.models import BY_NAME, Model

# One whose tower takes pictures of one size, one whose blocks run past torch's hooks, one of tiles.
NAMES = ("llava_clip", "pixtral", "qwen2_5_vl", "internvl")


def _heads(folder: Path, host: Any) -> list[Path]:
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        head = DepthHead.for_host(host, "fast", context="mean", channels=(8, 8, 8)).eval()
        head.save_pretrained(folder / f"head{seed}")
        folders.append(folder / f"head{seed}")
    return folders


@pytest.fixture(params=NAMES)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Model, Path]]:
    """An engine without heads, and a folder with two that fit."""
    model = BY_NAME[request.param]
    with engine(model, tmp_path, worker_extension_cls=EXTENSION) as llm:
        _heads(tmp_path, host_of(llm))
        yield llm, model, tmp_path


def test_requests_and_pictures(  # noqa: PLR0915 - one engine for all of it
    served: tuple[Any, Model, Path],
) -> None:
    """All that a served engine must hold; one engine, as each takes most of a minute to start."""
    from vllm import SamplingParams

    llm, model, folder = served
    sampling = SamplingParams(max_tokens=4, temperature=0, logprobs=2, ignore_eos=True)
    pictures = [picture(n, size) for n, size in enumerate([(64, 40), (40, 64), (48, 48), (56, 32)])]
    prompts = [
        prompt(model, pictures[0], pictures[1]),
        prompt(model),
        prompt(model, pictures[2]),
        prompt(model, pictures[1], pictures[3]),
    ]
    alone = answers(llm, prompts)
    with pytest.raises(ClipDepthError, match="no head"):
        generate_with_depth(llm, prompts, sampling)

    def serve(**more: Any) -> None:
        given = {"heads": [str(folder / "head1"), str(folder / "head2")], **more}
        llm.collective_rpc("clipdepth_attach", args=(given,))

    serve()
    # The engine's cache has all pictures, and the heads have seen none of them.
    cached = generate_with_depth(llm, prompts[2:3], sampling, use_tqdm=False)
    assert "no depth is kept" in str(cached[0].pictures[0].problem)
    _forget(llm)
    found = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
    assert [said(one.output) for one in found] == alone
    assert [len(one.pictures) for one in found] == [2, 0, 1, 2]
    assert [p.problem for one in found for p in one.pictures] == [None] * 5
    # A picture's depth is that of the picture alone, in whatever batch it came.
    for one, shown in zip(found, [(0, 1), (), (2,), (1, 3)], strict=True):
        for got, number in zip(one.pictures, shown, strict=True):
            expected = _alone(llm, folder, prompt(model, pictures[number]))
            for name, maps in got.maps.items():
                assert len(maps) == len(expected[name])
                for first, second in zip(maps, expected[name], strict=True):
                    np.testing.assert_allclose(first, second, rtol=1e-4)
    one_head, other_head = (maps[0] for maps in found[2].pictures[0].maps.values())
    assert not np.array_equal(one_head, other_head)
    # Repeated: no tower pass, and the same maps.
    _forget(llm)
    olds = generate_with_depth(llm, [prompts[3], prompts[0]], sampling, use_tqdm=False)
    seen: list[Any] = []
    handle = choose_tower(host_of(llm)).patch_embed.register_forward_hook(lambda *_: seen.append(1))
    news = generate_with_depth(llm, [prompts[0], prompts[3]], sampling, use_tqdm=False)
    handle.remove()
    assert not seen
    for old, new in zip(olds, news[::-1], strict=True):
        for was, now in zip(old.pictures, new.pictures, strict=True):
            assert was.hash == now.hash
            for name in was.maps:
                assert all(map(np.array_equal, was.maps[name], now.maps[name]))
    (known,) = llm.collective_rpc("clipdepth_answers", args=(["nobody's"],))
    with pytest.raises(NoDepthError, match="no request"):
        pictures_of(known[0])
    _check_endpoint(llm, found[2])
    _check_aborted(llm, model, pictures)
    llm.collective_rpc("clipdepth_detach")
    with pytest.raises(ClipDepthError, match="no head"):
        generate_with_depth(llm, prompts, sampling)
    host = host_of(llm)
    assert not [m for m in host.modules() if "forward" in vars(m) and "_Wrapped" in str(m.forward)]
    assert "embed_multimodal" not in vars(host)
    _forget(llm)
    assert answers(llm, prompts) == alone
    # Hardly any memory: what is dropped is said to be, and none is another's.
    serve(cache_mib=1)
    llm.collective_rpc(_shrink)
    _forget(llm)
    small = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
    problems = [p.problem for one in small for p in one.pictures]
    assert any(one is not None and "cache_mib" in one for one in problems)
    llm.collective_rpc("clipdepth_detach")
    # A head that does not fit is refused, and leaves nothing behind.
    wrong = DepthHead.from_pretrained(folder / "head1").config.model_copy(update={"width": 96})
    DepthHead(wrong).save_pretrained(folder / "wrong")
    with pytest.raises(ClipDepthError, match="width"):
        llm.collective_rpc(
            "clipdepth_attach", args=({"heads": [str(folder / "head1"), str(folder / "wrong")]},)
        )
    assert "embed_multimodal" not in vars(host)
    assert answers(llm, prompts) == alone


def _forget(llm: Any) -> None:
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()


def _shrink(worker: Any) -> None:
    worker._clipdepth._store._bound = 30_000


def _alone(llm: Any, folder: Path, one: Any) -> dict[str, list[Any]]:
    """Depth of a prompt's picture by plug-ins of this test's own, on the engine's model."""
    host, expected = host_of(llm), {}
    llm.collective_rpc(_pause)
    for name in ("head1", "head2"):
        _forget(llm)
        head = DepthHead.from_pretrained(folder / name).eval()
        with attach(host, head) as plugin, plugin.capture() as seen:
            answers(llm, [one], tokens=1)
        expected[str(folder / name)] = [m[0].numpy() for p in seen for m in p.depths]
    return expected


def _pause(worker: Any) -> None:
    """Nothing to do: the plug-ins of the engine's heads and of this test are side by side."""


def _check_endpoint(llm: Any, shown: Any) -> None:
    class Client:
        async def collective_rpc(self, method: str, args: Any) -> Any:
            return llm.collective_rpc(method, args=args)

    said = asyncio.run(answer(Client(), shown.output.request_id))
    views = said["pictures"][0]["views"]
    assert len(views) == sum(map(len, shown.pictures[0].maps.values()))
    for view in views:
        png = np.asarray(Image.open(io.BytesIO(base64.b64decode(view["png"]))))
        metres = shown.pictures[0].maps[view["head"]][view["view"]]
        np.testing.assert_allclose(png / 1000, metres, atol=0.0006)
    with pytest.raises(ClipDepthError, match="CLIPDEPTH_VLLM_FOLDER"):
        asyncio.run(answer(Client(), shown.output.request_id, "file"))
    with pytest.raises(NoDepthError, match="no request"):
        asyncio.run(answer(Client(), "nobody's"))


def _check_aborted(llm: Any, model: Model, pictures: list[Any]) -> None:
    """A request that is aborted on the way takes no map from those beside it, and gives none."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    core = llm.llm_engine
    one, other = picture(21, (48, 40)), picture(22, (40, 48))
    expected = {}
    for name, shown in (("alone", one), ("beside", other)):
        (only,) = generate_with_depth(llm, [prompt(model, shown)], sampling, use_tqdm=False)
        expected[name] = only.pictures[0].maps
    _forget(llm)
    core.add_request("aborted", prompt(model, one), sampling)
    core.add_request("stays", prompt(model, other), sampling)
    core.step()
    core.abort_request(["aborted"])
    while core.has_unfinished_requests():
        core.step()
    ((stays, _),) = llm.collective_rpc("clipdepth_answers", args=(["stays", "aborted"],))
    (got,) = pictures_of(stays)
    for name, maps in got.maps.items():
        for first, second in zip(maps, expected["beside"][name], strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4)
