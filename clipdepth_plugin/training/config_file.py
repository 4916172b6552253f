"""From a YAML file and command-line overrides to a checked ``TrainConfig``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from clipdepth_plugin.errors import ConfigError
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
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: can't be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: expected fields, e.g. 'host: demo', got {tree!r}")
    for field, value in _pairs(overrides):
        _set(tree, field, value)
    return check_config(tree, f"config {path}")


def check_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """Checks a tree of plain values; a ConfigError names every field that is wrong."""
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(one) for one in error.errors(include_url=False)]
        raise ConfigError("\n  ".join([f"{source}:", *lines])) from error


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
    if "auxiliary" not in config.loss.model_fields_set:
        del tree["loss"]["auxiliary"]  # so that it still depends on the head
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
        try:
            pairs.append((field, yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise ConfigError(f"--{field} {text}: the value is not valid YAML: {error}") from error
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


def _describe(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
        return f"{where}: no such field; {hint}"
    if problem["type"] == "missing":
        return f"{where}: must be given"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    return f"{where}: {message}{shown}" if where else message


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """Names of the fields that the model at a place of the tree has."""
    model: Any = TrainConfig
    for name in location:
        if isinstance(name, str) and name in getattr(model, "model_fields", {}):
            model = _model_in(model.model_fields[name].annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_model_in(one) for one in getattr(annotation, "__args__", ()))
    return next((one for one in inside if one is not None), None)
