"""Head files that lie: sizes that no memory holds, weights that are no numbers, text as markup."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipdepth_plugin import DepthHead, HeadConfig, load_spaceclip
from clipdepth_plugin.config import Provenance
from clipdepth_plugin.errors import HeadFileError
from clipdepth_plugin.weights.model_card import model_card_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"
GIB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "head"
    DepthHead(HeadConfig(width=16, channels=(8, 6, 4, 4), film_hidden=8)).save_pretrained(path)
    return path


LARGE: dict[str, Any] = {
    "width": 60_000,
    "film_hidden": 60_000,
    "channels": [60_000] * 4,
    "preset": {"preset": "guided", "channels": [60_000] * 3, "stem_channels": 60_000},
    "likeness": {"preset": "guided", "channels": [60_000] * 3, "likeness_channels": 60_000},
    "semantic_levels": list(range(4000)),
    "structural_levels": [1] * 100_000,
    "auxiliary": 10**18,
    "film": {"film_hidden": 3_000_000},
    "wide": {"width": 10**18},
    "stages": {"channels": [1] * 100_000, "semantic_levels": [1] * 100_000},
    "deep": {"provenance": json.loads("[" * 60 + "]" * 60)},
}


def test_a_configs_sizes_take_no_memory(folder: Path, tmp_path: Path) -> None:
    """In one process that may have 1 GiB more than it has after the import."""
    config = json.loads((folder / CONFIG).read_text())
    cases = []
    for number, (name, value) in enumerate(LARGE.items()):
        fields = value if isinstance(value, dict) else {name: value}
        case = tmp_path / str(number)
        case.mkdir()
        (case / WEIGHTS).symlink_to(folder / WEIGHTS)
        (case / CONFIG).write_text(json.dumps({**config, **fields}))
        cases.append(str(case))
    code = (
        "import resource, sys, time\n"
        "from clipdepth_plugin import DepthHead\n"
        "from clipdepth_plugin.errors import HeadFileError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {GIB},) * 2)\n"
        "for case in sys.argv[1:]:\n"
        "    try:\n"
        "        DepthHead.from_pretrained(case)\n"
        "    except HeadFileError as error:\n"
        "        assert len(str(error)) < 5000\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *cases], check=False, capture_output=True, text=True
    )
    assert done.stdout.split() == ["refused"] * len(cases), done.stderr[-3000:]


def _rewritten(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        save_file(change(load_file(path)), path)

    return edit


def _first_float(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def edit(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = min(name for name, x in state.items() if x.is_floating_point())
        return {**state, name: change(state[name])}

    return _rewritten(edit)


def _counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: x.to(torch.complex64) if name.endswith("num_batches_tracked") else x
        for name, x in state.items()
    }


def _variances(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -x - 1 if name.endswith("running_var") else x for name, x in state.items()}


def _header(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = change(content[8 : 8 + length].decode()).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    return edit


def _twice(header: str) -> str:
    name, entry = next((k, v) for k, v in json.loads(header).items() if k != "__metadata__")
    return header.replace("{", "{" + f"{json.dumps(name)}:{json.dumps(entry)},", 1)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        _first_float(lambda x: x.to(torch.float8_e4m3fn)),
        _first_float(lambda x: x.to(torch.float8_e5m2)),
        _first_float(lambda x: torch.full_like(x, 1e300, dtype=torch.float64)),
        _first_float(lambda x: x.to(torch.complex64)),
        _first_float(lambda x: x.to(torch.int8)),
        _first_float(lambda x: torch.full_like(x, torch.nan)),
        _first_float(lambda x: x[None]),
        _rewritten(_counters),
        _rewritten(_variances),
        _rewritten(lambda state: {}),
        _header(_twice),
        _header(lambda header: header.replace("[", "[[", 1)),
        _header(lambda header: "[" * 100_000),
        _header(lambda header: '{"a":{"shape":[1e400],"dtype":"F32","data_offsets":[0,0]}}'),
        _header(lambda header: '{"a":3}'),
        _header(lambda header: "null"),
        lambda path: path.write_bytes(b"\xff" * 8 + b"{}"),
        lambda path: path.write_bytes(b""),
        _pipe,
    ],
)
def test_weights_that_lie_are_refused(damage: Callable[[Path], object], folder: Path) -> None:
    damage(folder / WEIGHTS)
    with pytest.raises(HeadFileError):
        DepthHead.from_pretrained(folder)


def test_float64_and_half_weights_are_read(folder: Path) -> None:
    before = DepthHead.from_pretrained(folder).state_dict()
    for dtype in (torch.float64, torch.bfloat16):
        state = {n: x.to(dtype) if x.is_floating_point() else x for n, x in before.items()}
        save_file(state, folder / WEIGHTS)
        after = DepthHead.from_pretrained(folder).state_dict()
        assert all(x.dtype == before[name].dtype for name, x in after.items())


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1).expand(60_000, 60_000, 1, 1),
        torch.zeros(8, 8).to_sparse(),
        torch.zeros(8, 8, device="meta"),
        torch.zeros(3),
        torch.tensor(1.0),
    ],
    ids=["expanded", "sparse", "meta", "row", "scalar"],
)
def test_published_weights_that_lie_are_refused(x: Tensor) -> None:
    for name in ("main_path_projections.0.weight", "film_param_generators.0.0.weight"):
        with pytest.raises(HeadFileError):
            load_spaceclip({"main_path_projections.0.weight": torch.zeros(8, 8), name: x})


TEXTS = (
    "mit\nextra: injected",
    "mit\n---\n# heading",
    "no",
    "null",
    "a: b",
    "[a, b]",
    "&a *a",
    "!!python/object/apply:os.system",
    "'",
    '"',
    "x # y",
    "\x1b[2J\x00\u2028",
    "<script>alert(1)</script>",
    "| a | b |\n|---|---|",
    "![x](http://x/y.png)",
    "[x](javascript:alert(1))",
    "```",
    "<!-- written by save_pretrained, sha256 " + "0" * 64 + " -->",
    "1.0",
    "~",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_config_is_text_in_the_card(text: str) -> None:
    given = Provenance(
        tower=text, tower_hashes={text: text}, data=(text,), license=text, notes=text
    )
    card = model_card_text(HeadConfig(width=16, provenance=given))
    _, front, body = card.split("---\n", 2)
    plain = model_card_text(HeadConfig(width=16, provenance=Provenance(license="MIT")))
    fields = yaml.safe_load(front)
    assert fields == {**yaml.safe_load(plain.split("---\n")[1]), "license": text.lower()}
    assert "<script" not in body
    assert "](javascript" not in body.replace("\\](", "")
    assert body.count("<!--") == 1
    assert "![" not in body.replace("\\![", "").replace("\\!\\[", "")
    rows = [line for line in body.splitlines() if line.startswith("| Tower | ")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3]
    assert "\n# Depth head for " in body
    assert "\x1b" not in card
