"""Training configs: YAML files and what is overridden on the command line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import dump_config, load_config
from tests.fuzz.fuzz import Fuzz, clear_errors
from tests.fuzz.mutate import mutated, mutated_tree

_CONFIGS = sorted(Path(__file__).resolve().parents[2].glob("configs/*.yaml"))
_RAW = [path.read_bytes() for path in _CONFIGS]
_TREES = [yaml.safe_load(raw) for raw in _RAW]
_FIELDS = ["steps", "head.preset", "head.options.width", "data.train.0.root", "loss.silog", "zoom"]


def _load(raw: bytes, overrides: list[str]) -> None:
    """A config that is read is read back the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(raw)
        with clear_errors():
            config = load_config(path, overrides)
            assert isinstance(config, TrainConfig)
            path.write_text(dump_config(config), encoding="utf-8")
            assert load_config(path) == config


def _dumped(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:  # an object that plain YAML can't hold
        return repr(tree).encode("utf-8", "surrogatepass")


_TEXT = st.text(max_size=20)
_OVERRIDES = st.lists(
    st.one_of(
        st.builds("--{}={}".format, st.one_of(st.sampled_from(_FIELDS), _TEXT), _TEXT),
        st.sampled_from([f"--{field}" for field in _FIELDS]),
        _TEXT,
    ),
    max_size=4,
)

_GRAMMAR = st.text("[]{}&*a:- \n,<>!?|'\"1.", max_size=60).map(str.encode)

FUZZES = (
    Fuzz("YAML", _GRAMMAR, lambda raw: _load(raw, []), 100),
    Fuzz("config's bytes", mutated(_RAW), lambda raw: _load(raw, []), 60),
    Fuzz("config's fields", mutated_tree(_TREES), lambda tree: _load(_dumped(tree), []), 100),
    Fuzz("overrides", _OVERRIDES, lambda words: _load(_RAW[0], words), 60),
)
