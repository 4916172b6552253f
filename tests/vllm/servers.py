"""vLLM's own server beside the test, with the entry points that an installation has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vllm.models import Model

ROOT = Path(__file__).resolve().parents[2]
KEY = "sesame"
_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else "
    "' ' + c.text }}{% endfor %}{% endfor %}"
)


def installed(folder: Path) -> Path:
    """A folder for PYTHONPATH that has the entry points of pyproject.toml."""
    info = folder / "site" / "clipdepth_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clipdepth-plugin\nVersion: 0\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info.parent


@contextmanager
def server(model: Model, folder: Path, **environment: str) -> Iterator[str]:
    """The address of a server of a tiny host, which wants the key ``KEY``."""
    model.save(folder / "model")
    template = folder / "chat.jinja"
    template.write_text(_TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder / "model"), "--served-model-name", "tiny"]
    command += ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"]
    command += ["--max-model-len", "256", "--gpu-memory-utilization", "0.1", "--api-key", KEY]
    command += ["--host", "127.0.0.1", "--port", str(port), "--chat-template", str(template)]
    command += ["--chat-template-content-format", "openai"]
    env = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_PLUGINS": "clipdepth",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{installed(folder)}",
        **environment,
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def ask(
    url: str, body: bytes | None = None, key: str | None = KEY, method: str | None = None
) -> tuple[int, Any]:
    """The status of an answer, and what it says; 0 where the server hangs up unread."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (urllib.error.URLError, ConnectionError) as error:
        return 0, str(error)
