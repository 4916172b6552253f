"""The endpoint beside vLLM's server, without an engine: files and wrong questions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.errors import DepthFileError, HostError, NoDepthError
from clipdepth_plugin.serving.endpoint import DepthEndpoint, answer
from clipdepth_plugin.serving.vllm import EXTENSION


class Client:
    """An engine with one request, whose pictures have names that a client chose."""

    def __init__(self, names: list[str], extension: str | None = EXTENSION) -> None:
        parallel = SimpleNamespace(worker_extension_cls=extension)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)
        self._names = names

    async def collective_rpc(self, _: str, args: Any) -> Any:
        if args != (["known"],):
            return [[{"problem": "no request of this id is known", "pictures": []}]]
        pictures = []
        for number, name in enumerate(self._names):
            maps = {
                head: [{"shape": [2, 3], "data": torch.full((2, 3), metres).numpy().tobytes()}]
                for head, metres in (("a/best", 1.0 + number), ("b/best", 11.0 + number))
            }
            pictures.append({"hash": name, "modality": "image", "problem": None, "maps": maps})
        return [None, [{"problem": None, "pictures": pictures}]]


def test_files_of_pictures_and_heads_that_are_called_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    monkeypatch.setenv("CLIPDEPTH_VLLM_FOLDER", str(folder))
    names = ["../up", ".._up", "/etc/x", "a\0b", "x" * 5000, "", "."]
    said = asyncio.run(answer(Client(names), "known", "file"))
    files = [view["file"] for one in said["pictures"] for view in one["views"]]
    assert len({*files}) == 2 * len(names)
    assert {Path(file) for file in files} == {*folder.iterdir()}
    assert [*tmp_path.iterdir()] == [folder]
    found = [int(np.asarray(Image.open(file))[0, 0]) for file in files]
    assert found == [1000 * (n + of) for n in range(len(names)) for of in (1, 11)]
    folder.rename(tmp_path / "gone")
    with pytest.raises(DepthFileError, match="maps"):
        asyncio.run(answer(Client(names), "known", "file"))
    with pytest.raises(HostError, match="CLIPDEPTH_VLLM_FOLDER"):
        asyncio.run(DepthEndpoint().init_state(Client([]), SimpleNamespace(), None))


@pytest.mark.parametrize(
    ("client", "request_id", "to", "error", "names"),
    [
        (Client([]), "nobody's", "base64", NoDepthError, "known"),
        (Client([]), "../known", "base64", NoDepthError, "known"),
        (Client([]), "known", "file", HostError, "CLIPDEPTH_VLLM_FOLDER"),
        (Client([]), "known", "/etc/x", HostError, "base64"),
        (Client([], None), "known", "base64", HostError, "no head"),
    ],
)
def test_wrong_questions_of_the_endpoint(
    client: Client, request_id: str, to: str, error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=names):
        asyncio.run(answer(client, request_id, to))
