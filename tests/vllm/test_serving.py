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
from tests.vllm.engines import answers, engine, forget, host_of, picture, prompt, said
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
        prompt(model, pictures[2], pictures[0], pictures[2]),  # one of them twice
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
    forget(llm)
    found = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
    assert [said(one.output) for one in found] == alone
    assert [len(one.pictures) for one in found] == [2, 0, 1, 2, 3]
    assert [p.problem for one in found for p in one.pictures] == [None] * 8
    # A picture's depth is that of the picture alone, in whatever batch it came.
    for one, shown in zip(found, [(0, 1), (), (2,), (1, 3), (2, 0, 2)], strict=True):
        for got, number in zip(one.pictures, shown, strict=True):
            _check_same(got.maps, _alone(llm, folder, prompt(model, pictures[number])))
    one_head, other_head = (maps[0] for maps in found[2].pictures[0].maps.values())
    assert not np.array_equal(one_head, other_head)
    # Repeated: no tower pass, and the same maps.
    forget(llm)
    olds = generate_with_depth(llm, [prompts[3], prompts[0]], sampling, use_tqdm=False)
    kept = {p.hash: p.maps for one in (*found, *olds) for p in one.pictures}
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
    forget(llm)
    assert answers(llm, prompts) == alone
    # Hardly any memory: what is dropped is said to be, and none is another's.
    serve(cache_mib=1)
    llm.collective_rpc(_shrink)
    forget(llm)
    small = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
    problems = [p.problem for one in small for p in one.pictures]
    assert any(one is not None and "cache_mib" in one for one in problems)
    for given in (p for each in small for p in each.pictures):
        assert (given.problem is None) == bool(given.maps)
        _check_same(given.maps, kept[given.hash] if given.maps else {})
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


def _shrink(worker: Any) -> None:
    worker._clipdepth._store._bound = 30_000


def _alone(llm: Any, folder: Path, one: Any) -> dict[str, list[Any]]:
    """Depth of a prompt's picture by plug-ins of this test's own, on the engine's model."""
    host, expected = host_of(llm), {}
    for name in ("head1", "head2"):
        forget(llm)
        head = DepthHead.from_pretrained(folder / name).eval()
        with attach(host, head) as plugin, plugin.capture() as seen:
            answers(llm, [one], tokens=1)
        expected[str(folder / name)] = [m[0].numpy() for p in seen for m in p.depths]
    return expected


def _check_endpoint(llm: Any, shown: Any) -> None:
    class Client:
        vllm_config = llm.llm_engine.vllm_config

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
    for name, shown in (("aborted", one), ("stays", other)):
        (only,) = generate_with_depth(llm, [prompt(model, shown)], sampling, use_tqdm=False)
        expected[name] = only.pictures[0].maps
    forget(llm)
    core.add_request("at once", prompt(model, picture(23)), sampling)
    core.abort_request(["at once"])
    core.add_request("aborted", prompt(model, one), sampling)
    core.add_request("stays", prompt(model, other), sampling)
    core.step()
    core.abort_request(["aborted"])
    while core.has_unfinished_requests():
        core.step()
    (said,) = llm.collective_rpc("clipdepth_answers", args=(["stays", "aborted", "at once"],))
    for name, answered in zip(("stays", "aborted"), said, strict=False):
        (got,) = pictures_of(answered)  # of the aborted one, what the tower had seen
        _check_same(got.maps, expected[name])
    with pytest.raises(NoDepthError, match="had not begun"):
        pictures_of(said[2])


def _check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, maps in found.items():
        for first, second in zip(maps, expected[name], strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4)
