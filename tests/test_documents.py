"""JSON and YAML that would hang, fill the memory or flood the terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.cli.data_spec import parse_data
from clipdepth_plugin.errors import MAX_MESSAGE, ClipDepthError, ConfigError, HeadFileError
from clipdepth_plugin.files.documents import parse_json, parse_yaml, read_json, read_yaml
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.training.config_file import load_config


def _bomb(link: str, start: str, levels: int = 9) -> str:
    lines = [start]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {link.format(inner)}")
    return "\n".join(lines)


YAML = {
    "aliases": _bomb("[{}]", "a0: &a0 [x, x, x, x, x, x, x, x, x]"),
    "merges": _bomb("{{<<: [{}]}}", "a0: &a0 {k: 1}"),
    "long text": "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]",
    "itself": "a: &a [*a]",
    "brackets": "[" * 100_000,
    "dashes": "- " * 50_000,
    "questions": "? " * 50_000,
    "braces": "{a: " * 50_000,
    "nodes": "[" + "1, " * 200_000 + "]",
    "bytes": "a: " + "x" * 2_000_000,
    "fields": "\n".join(f"k{number}: 1" for number in range(12_000)),
    "field": "x" * 500 + ": 1",
    "values": "host: [" + "x, " * 10_000 + "]",
    "alias": "*" + "a" * 200_000,
    "anchor": "&" + "a" * 200_000 + " x",
    "tag": "!" + "a" * 200_000 + " x",
    "python": "!!python/object/apply:os.system [id]",
    "twice": "seed: 1\nseed: 2",
    "twice quoted": "seed: 1\n'seed': 2",
    "date": "host: 2020-01-01",
    "no date": "host: 2020-13-45",
    "sexagesimal": "seed: " + ":".join(["59"] * 5000),
    "sexagesimal float": "seed: " + ":".join(["59"] * 5000) + ".5",
    "digits": "seed: " + "9" * 5000,
    "hexadecimal": "seed: 0x" + "f" * 100_000,
    "bytes of base 64": "host: !!binary aGFsbG8=",
    "set": "host: !!set {a, b}",
    "key": "{[1]: 2}",
    "surrogate": 'host: "\\ud800"',
    "control": "host: \x1b[2J",
    "documents": "a: 1\n---\nb: 2",
    "list": "[1, 2]",
    "nothing": "",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_is_bounded(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for read in (load_config, lambda path: parse_data(str(path))):
        start = time.process_time()
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (a pydantic error of parse_data)
            read(path)
        assert time.process_time() - start < 10
        assert len(str(caught.value)) <= MAX_MESSAGE + 50
        assert "\x1b" not in str(caught.value)


JSON = {
    "brackets": "[" * 200_000,
    "braces": '{"a":' * 200_000,
    "deep": "[" * 100 + "]" * 100,
    "bytes": " " * 2_000_000,
    "digits": "9" * 5000,
    "number": "9" * 4000,
    "twice": '{"width": 1, "width": 2}',
    "surrogate": '{"width": "\\ud800"}',
    "fields": "{" + ", ".join(f'"{number}": 1' for number in range(50_000)) + "}",
    "values": '{"width": [' + "1, " * 100_000 + "1]}",
    "text": '{"width": "' + "x" * 500_000 + '"}',
    "levels": '{"width": 8, "semantic_levels": [' + '"x", ' * 100_000 + '"x"]}',
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_a_heads_json_is_bounded(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HeadFileError) as caught:
        DepthHead.from_pretrained(tmp_path)
    assert len(str(caught.value)) <= 5000


def test_ordinary_documents() -> None:
    """Anchors, merges and byte order marks are fine."""
    text = "\ufeffbase: &b {x: 1, y: 2}\nsets: [*b, {<<: *b, y: 3}]\nname: *b"
    found = parse_yaml(text, "x", ConfigError)
    assert found["sets"] == [{"x": 1, "y": 2}, {"x": 1, "y": 3}]
    assert parse_json(b'\xef\xbb\xbf{"a": [1.5, null, true]}', "x", ConfigError) == {
        "a": [1.5, None, True]
    }


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file(read: Callable[..., Any], tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, loop, pipe, "/dev/zero", "a\0b", "x" * 300, tmp_path / "none"):
        with pytest.raises(ConfigError):
            read(path, ConfigError)


def test_messages_are_bounded() -> None:
    assert len(str(ClipDepthError("x" * 10_000_000))) < MAX_MESSAGE + 100
