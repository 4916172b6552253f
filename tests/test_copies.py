"""Copied, pickled and saved hosts carry nothing of ours and work where our package is not."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach

MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]

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
