"""How an engine is started with a head: by config, environment, over HTTP; and refused."""

from __future__ import annotations

import base64
import importlib
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.serving.general_plugin import register
from clipdepth_plugin.serving.vllm import generate_with_depth
from tests.vllm.engines import engine, picture, prompt
from tests.vllm.models import BY_NAME, WIDTH
from tests.vllm.servers import KEY, ROOT, ask, server

MODEL = BY_NAME["llava_clip"]
_LEVELS: dict[str, Any] = {"semantic_levels": (4, 3, 2), "structural": False}


def save_head(folder: Path) -> Path:
    """A small head for the tiny towers."""
    config = HeadConfig(width=WIDTH, preset="fast", context="mean", channels=(8, 8, 8), **_LEVELS)
    DepthHead(config).save_pretrained(folder)
    return folder


def test_the_environment_names_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's entry point alone; preempted requests keep their pictures' own depth.

    The engine's caches of pictures and prefixes are off: it gives each picture a name of its own.
    """
    from vllm import SamplingParams

    importlib.import_module("vllm.engine.arg_utils")  # which calls it
    register()
    register()  # vLLM does so in every process, and may twice
    monkeypatch.setenv("CLIPDEPTH_VLLM_HEAD", str(save_head(tmp_path / "head")))
    few: dict[str, Any] = {
        "block_size": 32,
        "num_gpu_blocks_override": 12,
        "disable_log_stats": False,
    }
    off: dict[str, Any] = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    with engine(MODEL, tmp_path, **few, **off) as llm:
        pictures = [picture(n, (40, 48)) for n in range(3)]
        sampling = SamplingParams(max_tokens=180, temperature=0, ignore_eos=True)
        prompts = [prompt(MODEL, one) for one in pictures]
        alone = [generate_with_depth(llm, [one], sampling, use_tqdm=False)[0] for one in prompts]
        llm.llm_engine.reset_encoder_cache()
        found = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
        preempted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
        assert sum(preempted) > 0
        for one, other in zip(alone, found, strict=True):
            assert one.output.outputs[0].token_ids == other.output.outputs[0].token_ids
            np.testing.assert_allclose(one.pictures[0].depth, other.pictures[0].depth, rtol=1e-4)
        depths = [one.pictures[0].depth for one in found]
        assert not np.array_equal(depths[0], depths[1])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
        ({"mm_encoder_tp_mode": "data", "tensor_parallel_size": 2}, "mm_encoder_tp_mode"),
        ({"additional_config": {"clipdepth": {"haeds": ["demo"]}}}, "haeds"),
    ],
    ids=["cudagraph_mm_encoder", "compile_mm_encoder", "mm_encoder_tp_mode", "unknown field"],
)
def test_refused_at_start(options: dict[str, Any], names: str, tmp_path: Path) -> None:
    register()
    head = {"additional_config": {"clipdepth": {"heads": [str(save_head(tmp_path / "head"))]}}}
    with (
        pytest.raises(ClipDepthError, match=names),
        engine(BY_NAME["qwen2_5_vl"], tmp_path, **head | options),
    ):
        pass


def test_the_server(tmp_path: Path) -> None:
    """The engine's own server and process, with its entry points: chat, then the depth."""
    head, maps = save_head(tmp_path / "head"), tmp_path / "maps"
    maps.mkdir()
    with server(
        MODEL, tmp_path, CLIPDEPTH_VLLM_HEAD=str(head), CLIPDEPTH_VLLM_FOLDER=str(maps)
    ) as url:
        found = {}
        # A client may name its pictures.
        for number, more in enumerate([{}, {"uuid": "../../escape"}, {"uuid": "../maps/escape"}]):
            (one,) = _depth(url, said := _chat(url, number, more)["id"])
            png = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))
            assert png.shape == tuple(one["size"]) == (32, 32)
            assert png.dtype == np.uint16
            (as_file,) = _depth(url, f"{said}?to=file")
            assert Path(as_file["file"]).parent == maps
            assert np.array_equal(np.asarray(Image.open(as_file["file"])), png)
            found[said] = png
        assert len([*maps.iterdir()]) == len({png.tobytes() for png in found.values()}) == 3
        _check_hostile(url, next(iter(found)))
        _check_left(url)
        _check_example(url, tmp_path)
        for one, png in found.items():
            (view,) = _depth(url, one)
            now = np.asarray(Image.open(io.BytesIO(base64.b64decode(view["png"]))))
            assert np.array_equal(now, png)


def _chat(url: str, number: int, more: dict[str, Any]) -> Any:
    code, said = ask(f"{url}/v1/chat/completions", _message(number, more, max_tokens=4))
    assert code == 200, said
    return said


def _message(number: int, more: dict[str, Any], **options: Any) -> bytes:
    shown = io.BytesIO()
    picture(number).save(shown, "png")
    data = f"data:image/png;base64,{base64.b64encode(shown.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": data}, **more},
        {"type": "text", "text": "what is here"},
    ]
    messages = [{"role": "user", "content": content}]
    return json.dumps(
        {"model": "tiny", "ignore_eos": True, "messages": messages, **options}
    ).encode()


def _depth(url: str, request: str) -> list[dict[str, Any]]:
    code, said = ask(f"{url}/v1/depth/{request}")
    assert code == 200, said
    (only,) = said["pictures"]
    views: list[dict[str, Any]] = only["views"]
    return views


def _check_hostile(url: str, known: str) -> None:
    """Clear answers, and the server goes on."""
    unknown = ("nobody", ".*", known[:-1], f"{known}-", "%00", "%ff%fe", "%2e%2e%2fx", "a" * 30_000)
    huge = b"[" * 50_000_000
    questions: tuple[tuple[str, set[int], dict[str, Any]], ...] = (
        *((one, {404}, {}) for one in unknown),
        ("", {404}, {}),
        ("..%2F..%2Fetc%2Fpasswd", {404}, {}),
        (f"{known}?to=elsewhere", {400}, {}),
        (f"{known}?to=%2Fetc%2Fx", {400}, {}),
        (f"{known}?to=base64&to=..", {400}, {}),
        (known, {401}, {"key": None}),
        (known, {401}, {"key": "another"}),
        (known, {200, 0}, {"body": huge, "method": "GET"}),
        (known, {405, 0}, {"body": huge, "method": "POST"}),
        (known, {200}, {}),
    )
    for path, code, more in questions:
        status, said = ask(f"{url}/v1/depth/{path}", **more)
        assert status in code, (path[:50], status, said)


def _check_left(url: str) -> None:
    """A client that goes away in the middle of its answer can still ask for its depth."""
    body = _message(9, {}, max_tokens=200, stream=True)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        first = json.loads(reply.readline().removeprefix(b"data: "))
    (left,) = _depth(url, first["id"])
    (whole,) = _depth(url, _chat(url, 9, {})["id"])
    assert left["png"] == whole["png"]


def _check_example(url: str, folder: Path) -> None:
    """The client of docs/vllm.md, as it stands there."""
    page = (ROOT / "docs" / "vllm.md").read_text()
    _, _, rest = page.partition("<!-- example: run by tests/vllm/test_start.py -->")
    code = rest.split("```python\n")[1].split("```")[0]
    picture(3).save(folder / "kitchen.jpg")
    for old, new in (
        ("http://localhost:8000", url),
        ("kitchen.jpg", str(folder / "kitchen.jpg")),
        ('api_key="none"', f'api_key="{KEY}"'),
    ):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/vllm.md", "exec"), names)  # noqa: S102
    assert names["metres"].shape == (32, 32)
    assert float(names["metres"].max()) > 0
