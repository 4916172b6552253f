"""What a served depth is asked for, and the engine options that it can't be had with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from clipdepth_plugin.errors import ConfigError, HostError
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.settings import Count, Settings

KEY = "clipdepth"
ENVIRONMENT = {
    "heads": "CLIPDEPTH_VLLM_HEAD",
    "tower": "CLIPDEPTH_VLLM_TOWER",
    "cache_mib": "CLIPDEPTH_VLLM_CACHE_MIB",
}


class ServingOptions(Settings):
    """Of ``additional_config={"clipdepth": {...}}``, or of the environment."""

    heads: tuple[str, ...] = Field(min_length=1)
    """``demo``, folders or hub ids; in CLIPDEPTH_VLLM_HEAD with commas between."""
    tower: str | None = None
    """Module path of the tower, where the model has several (CLIPDEPTH_VLLM_TOWER)."""
    other_tower: bool = False
    """As of ``attach``."""
    cache_mib: Count = 256
    """How much depth is kept, by picture (CLIPDEPTH_VLLM_CACHE_MIB)."""
    requests: Count = 10_000
    """Of how many requests it is kept which pictures they show."""


def options_of(vllm_config: Any) -> ServingOptions | None:
    """What an engine's config or else the environment asks for; None where neither does.

    Raises:
        ConfigError: A field is unknown or has a value that it can't have.
    """
    additional = getattr(vllm_config, "additional_config", None)
    given = additional.get(KEY) if isinstance(additional, Mapping) else None
    if given is not None:
        return read_options(given, f"additional_config[{KEY!r}]")
    said: dict[str, Any] = {
        field: os.environ[name] for field, name in ENVIRONMENT.items() if os.environ.get(name)
    }
    if "heads" not in said:
        return None
    said["heads"] = [one.strip() for one in said["heads"].split(",")]
    return read_options(said, ", ".join(ENVIRONMENT.values()))


def read_options(given: Any, where: str) -> ServingOptions:
    """Checked options; ``where`` they were given, for errors."""
    if isinstance(given, Mapping) and isinstance(given.get("heads"), str):
        given = {**given, "heads": [given["heads"]]}
    options = checked(ServingOptions, given, where, ConfigError)
    if len({*options.heads}) != len(options.heads):
        raise ConfigError(f"{where}: heads: {list(options.heads)} names one head twice")
    return options


class _Refused(NamedTuple):
    """An engine option, by its path in the engine's config, and when and why it is refused."""

    path: str
    when: Callable[[Any], bool]
    why: str


_REFUSED = (
    _Refused(
        "compilation_config.cudagraph_mm_encoder",
        bool,
        "it replays the tower's CUDA graph, past the taps that depth is read with: leave it False",
    ),
    _Refused(
        "compilation_config.compile_mm_encoder",
        bool,
        "it compiles the tower's blocks, past the taps that depth is read with: leave it False",
    ),
    _Refused(
        "model_config.multimodal_config.mm_encoder_tp_mode",
        lambda said: said == "data",
        "each worker is given a part of the pictures only: use 'weights'",
    ),
    _Refused(
        "ec_transfer_config.is_ec_consumer",
        bool,
        "another engine encodes the pictures, so this one's tower does not see them: let it encode",
    ),
    _Refused(
        "parallel_config.data_parallel_size",
        lambda said: said is not None and said > 1,
        "only the first of the engines behind one server can be asked for depth: start a server "
        "for each",
    ),
)


def refuse(vllm_config: Any) -> None:
    """Refuses, by name, the engine options under which a tower's passes can't be seen.

    Raises:
        HostError: One of them is on, or the model is served without pictures.
    """
    if _value(vllm_config, "model_config.multimodal_config") is None:
        raise HostError(
            f"{_value(vllm_config, 'model_config.model')}: the engine serves it as a model without "
            "pictures, so there is no tower to read depth of"
        )
    for path, when, why in _REFUSED:
        if when(said := _value(vllm_config, path)):
            raise HostError(f"{path}={said!r}: {why}, or serve without a head")


def _value(config: Any, path: str) -> Any:
    """None where a release of the engine has no such option."""
    return functools.reduce(lambda part, name: getattr(part, name, None), path.split("."), config)
