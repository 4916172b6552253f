"""From a YAML file and command-line overrides to a checked ``TrainConfig``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipdepth_plugin.errors import ConfigError, quoted, shortened
from clipdepth_plugin.files.documents import parse_yaml, read_yaml
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.training.config import TrainConfig


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a config file and applies overrides.

    Args:
        path: A YAML file with the fields of ``TrainConfig``.
        overrides: As on the command line: ``--any.field value`` or ``--any.field=value``, with
            numbers for the entries of lists (``--data.train.0.root``). Values are YAML.

    Returns:
        The merged config.

    Raises:
        ConfigError: No such file, no YAML, an unknown field or a value of the wrong type; names
            every field that is wrong.
    """
    tree = read_yaml(path, ConfigError)
    if not isinstance(tree, dict):
        given = quoted(tree)
        raise ConfigError(f"config {path}: expected fields, e.g. 'host: demo', got {given}")
    return with_fields(tree, overrides, f"config {path}")


def with_fields(tree: dict[str, Any], overrides: Sequence[str], source: str) -> TrainConfig:
    """Sets ``overrides`` in a tree of plain values, and checks it; see ``load_config``."""
    for field, value in _pairs(overrides):
        _set(tree, field, value)
    return check_config(tree, source)


def check_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """Checks a tree of plain values; a ConfigError names every field that is wrong."""
    return checked(TrainConfig, tree, source, ConfigError)


def with_cache(config: TrainConfig) -> TrainConfig:
    """The config with the token cache on, in ``token-cache`` beside the run where it has none."""
    if config.cache is not None:
        return config
    tree = yaml.safe_load(dump_config(config))
    return check_config(
        {**tree, "cache": {"folder": str(Path(config.run).parent / "token-cache")}}, "--cache"
    )


def dump_config(config: TrainConfig) -> str:
    """The whole config as YAML, defaults included; ``load_config`` reads the same config back."""
    tree = config.model_dump(mode="json")
    if config.head.init is not None:
        # With init these may not be given, not even as their defaults.
        tree["head"] = {"init": config.head.init}
    # So that what is not given still depends on the head.
    head, given = config.head.config(), config.loss.model_fields_set
    dependent = {"auxiliary"} if head is not None and head.metric else tree["loss"].keys()
    for name in [*(dependent - given)]:
        del tree["loss"][name]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    rest = list(overrides)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or option == "--":
            raise ConfigError(f"{option!r}: expected --field value, with CONFIG.yaml before it")
        field, equals, text = option.removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{field}: needs a value, as in --{field} value")
            text = rest.pop(0)
        if field in (one for one, _ in pairs):
            raise ConfigError(f"--{field}: is given twice; give it once")
        where = f"--{field} {shortened(text)}: the value"
        pairs.append((field, parse_yaml(text, where, ConfigError)))
    return pairs


def _set(tree: dict[str, Any], field: str, value: Any) -> None:
    """Sets ``a.b.0.c`` in nested mappings and lists; missing mappings are made."""
    *parents, last = field.split(".")
    here: Any = tree
    for depth, name in enumerate(parents):
        if isinstance(here, list):
            here = here[_index(here, name, field)]
        elif isinstance(here, dict):
            if here.get(name) is None:
                here[name] = {}
            here = here[name]
        else:
            raise ConfigError(f"--{field}: {'.'.join(parents[:depth])} has no fields of its own")
    if isinstance(here, list):
        here[_index(here, last, field)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise ConfigError(f"--{field}: {'.'.join(parents)} has no fields of its own")


def _index(here: list[Any], name: str, field: str) -> int:
    if not name.isdecimal() or int(name) >= len(here):
        raise ConfigError(f"--{field}: {name!r} is no entry of a list of {len(here)}; count from 0")
    return int(name)
