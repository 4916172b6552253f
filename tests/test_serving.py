"""What serving keeps and refuses, without an engine: `make test-vllm` has the real one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clipdepth_plugin
from clipdepth_plugin.errors import ConfigError, HostError, NoDepthError
from clipdepth_plugin.serving.general_plugin import register
from clipdepth_plugin.serving.options import options_of, refuse
from clipdepth_plugin.serving.store import Kept, MapStore, Picture, RequestLog
from clipdepth_plugin.serving.vllm import (
    EXTENSION,
    DepthOutput,
    DepthWorker,
    PictureDepth,
    check_extended,
    first_answers,
    pictures_of,
)

ONE = Picture("one", "image")
TWO = Picture("two", "image")


def kept(pixels: int) -> Kept:
    return Kept({"demo": [torch.zeros(1, pixels)]})


def test_the_store_is_bounded_and_drops_what_was_asked_for_longest_ago() -> None:
    store = MapStore(3 * kept(1000).size)
    for name in "abc":
        store.put(name, kept(1000))
    assert store.get("a") is not None
    store.put("d", kept(1000))
    assert [name for name in "abcd" if store.get(name) is not None] == ["a", "c", "d"]
    store.put("a", kept(1000))  # in its own place
    assert len(store) == 3
    store.put("e", kept(100_000))  # more than all may be
    assert store.get("e") is None
    for number in range(100_000):
        store.put(str(number), Kept(problem="none"))
    assert len(store) < 100


def test_requests_are_found_by_the_ids_that_users_know() -> None:
    log = RequestLog(5)
    log.note("chatcmpl-7-0a1b2c3d", (ONE,))
    log.note("chatcmpl-77-0a1b2c3d", (TWO,))
    log.note("chatcmpl-8", ())
    assert log.find("chatcmpl-7") == [(ONE,)]
    assert log.find("chatcmpl-7-0a1b2c3d") == [(ONE,)]
    assert log.find("chatcmpl-8") == [()]
    for other in ("", "7", "chatcmpl", "chatcmpl-", "chatcmpl-7-", "chatcmpl-7-0a1b", "hatcmpl-7"):
        assert log.find(other) == [], other
    log.note("0_x-0000000a", (ONE,))
    log.note("1_x-0000000b", (ONE,))
    assert log.find("x") == [(ONE,)]  # n=2 of one prompt
    log.note("x-0000000c", (TWO,))
    assert log.find("x") == [(ONE,), (TWO,)]  # an id that was given twice
    assert log.find("chatcmpl-7") == []  # bounded


def config(additional: Any = None, **options: Any) -> Any:
    """An engine's config; an option by its path, parts joined by two underlines."""
    said: dict[str, Any] = {
        "compilation_config__cudagraph_mm_encoder": False,
        "compilation_config__compile_mm_encoder": False,
        "model_config__model": "host",
        "model_config__multimodal_config__mm_encoder_tp_mode": "weights",
        "parallel_config__data_parallel_size": 1,
        "ec_transfer_config": None,
        **options,
    }
    made = SimpleNamespace(additional_config=additional or {})
    for path, value in said.items():
        *parents, last = path.split("__")
        part = made
        for name in parents:
            if getattr(part, name, None) is None:
                setattr(part, name, SimpleNamespace())
            part = getattr(part, name)
        setattr(part, last, value)
    return made


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compilation_config__cudagraph_mm_encoder", True),
        ("compilation_config__compile_mm_encoder", True),
        ("model_config__multimodal_config__mm_encoder_tp_mode", "data"),
        ("parallel_config__data_parallel_size", 2),
        ("ec_transfer_config__is_ec_consumer", True),
    ],
)
def test_engine_options_are_refused_by_name(option: str, value: Any) -> None:
    refuse(config())
    with pytest.raises(HostError, match=option.replace("__", r"\.")):
        refuse(config(**{option: value}))


def test_a_model_without_pictures_is_refused() -> None:
    with pytest.raises(HostError, match="without pictures"):
        refuse(config(model_config__multimodal_config=None))


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of(config()) is None
    monkeypatch.setenv("CLIPDEPTH_VLLM_HEAD", "demo, ./other")
    monkeypatch.setenv("CLIPDEPTH_VLLM_CACHE_MIB", "7")
    said = options_of(config())
    assert said is not None
    assert (said.heads, said.cache_mib) == (("demo", "./other"), 7)
    given = options_of(config({"clipdepth": {"heads": "mine"}}))  # before the environment
    assert given is not None
    assert (given.heads, given.cache_mib) == (("mine",), 256)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, "heads"),
        ({"heads": []}, "heads"),
        ({"heads": [1]}, "heads"),
        ({"heads": ["a", "a"]}, "twice"),
        ({"heads": ["a"], "cache": 3}, "cache"),
        ({"heads": ["a"], "cache_mib": 0}, "cache_mib"),
        ({"heads": ["a"], "cache_mib": "many"}, "cache_mib"),
        ("demo", "clipdepth"),
    ],
)
def test_wrong_options_name_the_field(given: Any, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        options_of(config({"clipdepth": given}))


def test_answers() -> None:
    one_map = {"shape": [1, 2], "data": torch.tensor([[1.0, 2.0]]).numpy().tobytes()}
    said = {"hash": "one", "modality": "image", "problem": None, "maps": {"demo": [one_map]}}
    (found,) = pictures_of({"problem": None, "pictures": [said]})
    assert found.depth.tolist() == [[1.0, 2.0]]
    assert pictures_of({"problem": None, "pictures": []}) == []
    with pytest.raises(NoDepthError, match="not known"):
        pictures_of({"problem": "not known", "pictures": []})
    assert first_answers([None, [said]]) == [said]
    with pytest.raises(HostError, match="worker_extension_cls"):
        first_answers([None, None])


@pytest.mark.parametrize(
    "maps", [{}, {"a": [], "b": []}, {"a": [torch.ones(1, 1).numpy()] * 2}], ids=str
)
def test_depth_is_one_map_or_an_error(maps: Any) -> None:
    with pytest.raises(NoDepthError, match="views"):
        _ = PictureDepth("one", "image", None, maps).depth
    with pytest.raises(NoDepthError, match="dropped"):
        _ = PictureDepth("one", "image", "dropped", maps).depth


class Mine(DepthWorker):
    """A user's own extension."""


@pytest.mark.parametrize("said", [EXTENSION, f"{__name__}.Mine"])
def test_engines_with_the_extension_can_be_asked(said: str) -> None:
    check_extended(config(parallel_config__worker_extension_cls=said))


@pytest.mark.parametrize("said", ["", None, "collections.OrderedDict"])
def test_engines_without_the_extension_say_that_they_have_no_head(said: Any) -> None:
    with pytest.raises(HostError, match="no head"):
        check_extended(config(parallel_config__worker_extension_cls=said))


def test_outputs_are_not_lost_with_what_is_known_of_their_pictures() -> None:
    assert DepthOutput("text", None, []).pictures == []
    unknown = DepthOutput("text", "not known any more", [])
    assert unknown.output == "text"
    with pytest.raises(NoDepthError, match="any more"):
        _ = unknown.pictures


def test_the_entry_point_keeps_no_release_from_starting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    register()
    assert "no depth" in caplog.text


def test_nobody_else_imports_or_needs_it() -> None:
    folder = Path(clipdepth_plugin.__file__).parent
    imported = re.compile(r"^\s*(from|import) (vllm|clipdepth_plugin\.serving)", re.MULTILINE)
    files = [
        Path(at, name)
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    users = {file.parent.name for file in files if imported.search(file.read_text())}
    assert len(files) > 200
    assert users == {"serving"}
    code = (
        "import importlib, sys; sys.modules['vllm'] = None;"
        "import clipdepth_plugin, clipdepth_plugin.cli;"
        "print([m for m in sys.modules if 'serving' in m or m.startswith('vllm.')]);"
        "[importlib.import_module('clipdepth_plugin.serving.' + name) for name in"
        " ('endpoint', 'engine', 'general_plugin', 'options', 'store', 'vllm')]"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    needed = importlib.metadata.requires("clipdepth-plugin") or []
    assert not [one for one in needed if "vllm" in one.lower()]
