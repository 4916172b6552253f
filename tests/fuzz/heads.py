"""Head folders: config.json, model.safetensors.

Axes: B views, N tokens, D width, H W pixels.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from tests.fuzz.fuzz import Fuzz, clear_errors
from tests.fuzz.mutate import mutated, mutated_tree

_SMALL: dict[str, Any] = {
    "width": 8,
    "semantic_levels": (2, 1),
    "structural_levels": (1, 0),
    "channels": (8, 4, 4),
    "film_hidden": 4,
}


@functools.cache
def _stored(preset: str) -> tuple[bytes, bytes]:
    """The two files of a small head."""
    torch.manual_seed(0)
    options = (
        {**_SMALL, "channels": (8, 4), "structural_levels": (0,)}
        if preset == "spaceclip"
        else _SMALL
    )
    with tempfile.TemporaryDirectory() as folder:
        head = DepthHead(HeadConfig(preset=preset, activation="log", **options))
        head.save_pretrained(folder)
        files = (Path(folder, name).read_bytes() for name in ("config.json", "model.safetensors"))
        return next(files), next(files)


def _load(config: bytes, weights: bytes) -> None:
    """The head has finite depth within its range, or an error says what is wrong with its files."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(config)
        Path(folder, "model.safetensors").write_bytes(weights)
        with clear_errors():
            head = DepthHead.from_pretrained(folder)
            low, high = head.config.depth_range
            features = _features(head.config)
            if features is None:
                return
            with torch.no_grad():
                depth_B1HW = head(features)
            if head.config.activation in ("log", "bins"):
                assert float(depth_B1HW.min()) >= low * 0.999
                assert float(depth_B1HW.max()) <= high * 1.001


def _features(config: HeadConfig) -> TowerFeatures | None:
    """What the head reads; None where that is large."""
    if max(config.width, *config.levels) > 4096:
        return None
    torch.manual_seed(0)
    levels = {level: torch.randn(1, 4, config.width) for level in config.levels}
    return TowerFeatures(levels, torch.randn(1, config.width), (2, 2), torch.randn(1, 3, 32, 32))


def _config(drawn: tuple[str, Any]) -> None:
    preset, content = drawn
    raw = (
        content
        if isinstance(content, bytes)
        else json.dumps(content, default=str).encode("utf-8", "surrogatepass")
    )
    _load(raw, _stored(preset)[1])


def _configs(preset: str) -> st.SearchStrategy[Any]:
    config = _stored(preset)[0]
    return st.tuples(
        st.just(preset), st.one_of(mutated([config]), mutated_tree([json.loads(config)]))
    )


def _weights(preset: str) -> st.SearchStrategy[tuple[bytes, bytes]]:
    config, weights = _stored(preset)
    size = 8 + int.from_bytes(weights[:8], "little")
    header = mutated([weights[:size]]).map(lambda head: head + weights[size:])
    return st.tuples(st.just(config), st.one_of(mutated([weights]), header))


_PRESETS = ("spaceclip", "fast", "guided")

FUZZES = (
    Fuzz(
        "head's config",
        st.deferred(lambda: st.one_of(*map(_configs, _PRESETS))),
        _config,
        250,
    ),
    Fuzz(
        "head's weights",
        st.deferred(lambda: st.one_of(*map(_weights, _PRESETS))),
        lambda files: _load(*files),
        150,
    ),
)
