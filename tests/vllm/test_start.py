"""How an engine is started with a head: by config, environment, over HTTP; and refused."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
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

ROOT = Path(__file__).resolve().parents[2]
MODEL = BY_NAME["llava_clip"]
_LEVELS: dict[str, Any] = {"semantic_levels": (4, 3, 2), "structural": False}


def save_head(folder: Path) -> Path:
    """A small head for the tiny towers."""
    config = HeadConfig(width=WIDTH, preset="fast", context="mean", channels=(8, 8, 8), **_LEVELS)
    DepthHead(config).save_pretrained(folder)
    return folder


def test_the_environment_names_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's entry point alone; preempted requests keep their pictures' own depth."""
    from vllm import SamplingParams

    importlib.import_module("vllm.engine.arg_utils")  # which calls it
    register()
    register()  # vLLM does so in every process, and may twice
    monkeypatch.setenv("CLIPDEPTH_VLLM_HEAD", str(save_head(tmp_path / "head")))
    few = {"block_size": 32, "num_gpu_blocks_override": 12, "enable_prefix_caching": False}
    with engine(MODEL, tmp_path, **few, disable_log_stats=False) as llm:
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
        ({"additional_config": {"clipdepth": {"haeds": ["demo"]}}}, "haeds"),
    ],
    ids=["cudagraph_mm_encoder", "compile_mm_encoder", "unknown field"],
)
def test_refused_at_start(options: dict[str, Any], names: str, tmp_path: Path) -> None:
    register()
    head = {"additional_config": {"clipdepth": {"heads": [str(save_head(tmp_path / "head"))]}}}
    with pytest.raises(ClipDepthError, match=names), engine(MODEL, tmp_path, **head | options):
        pass


def test_the_server(tmp_path: Path) -> None:  # noqa: PLR0915 - one server for all of it
    """The engine's own server and process, with its entry points: chat, then the depth."""
    MODEL.save(tmp_path / "model")
    head = save_head(tmp_path / "head")
    installed = tmp_path / "site" / "clipdepth_plugin-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: clipdepth-plugin\nVersion: 0\n"
    )
    (installed / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nclipdepth = clipdepth_plugin.serving.general_plugin:register\n"
        "[vllm.endpoint_plugins]\nclipdepth = clipdepth_plugin.serving.endpoint:DepthEndpoint\n"
    )
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else "
        "' ' + c.text }}{% endfor %}{% endfor %}"
    )
    (tmp_path / "maps").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(tmp_path / "model"), "--served-model-name", "tiny"]
    command += ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"]
    command += ["--max-model-len", "256", "--gpu-memory-utilization", "0.1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--chat-template", str(template)]
    command += ["--chat-template-content-format", "openai"]
    env = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_PLUGINS": "clipdepth",
        "CLIPDEPTH_VLLM_HEAD": str(head),
        "CLIPDEPTH_VLLM_FOLDER": str(tmp_path / "maps"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}",
    }
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, server, log)
        ids = []
        for number in (0, 1):
            shown = io.BytesIO()
            picture(number).save(shown, "png")
            data = f"data:image/png;base64,{base64.b64encode(shown.getvalue()).decode()}"
            content = [
                {"type": "image_url", "image_url": {"url": data}},
                {"type": "text", "text": "what is here"},
            ]
            said = _json(
                f"{url}/v1/chat/completions",
                {
                    "model": "tiny",
                    "max_tokens": 4,
                    "ignore_eos": True,
                    "messages": [{"role": "user", "content": content}],
                },
            )
            ids.append(said["id"])
        maps = []
        for one in ids:
            (shown_picture,) = _json(f"{url}/v1/depth/{one}")["pictures"]
            (view,) = shown_picture["views"]
            png = np.asarray(Image.open(io.BytesIO(base64.b64decode(view["png"]))))
            assert png.shape == tuple(view["size"]) == (32, 32)
            assert png.dtype == np.uint16
            maps.append(png)
            (as_file,) = _json(f"{url}/v1/depth/{one}?to=file")["pictures"][0]["views"]
            assert Path(as_file["file"]).parent == tmp_path / "maps"
            assert np.array_equal(np.asarray(Image.open(as_file["file"])), png)
        assert not np.array_equal(maps[0], maps[1])
        for path, code in (("nobody", 404), (f"{ids[0]}?to=elsewhere", 400)):
            with pytest.raises(urllib.error.HTTPError) as error:
                _json(f"{url}/v1/depth/{path}")
            assert error.value.code == code
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def _json(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        return json.load(reply)
