"""What a served depth is asked for, and the engine options that it can't be had with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

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


def refuse(vllm_config: Any) -> None:
    """Refuses, by name, the engine options under which a tower's passes can't be seen.

    Raises:
        HostError: One of them is on.
    """
    compilation = getattr(vllm_config, "compilation_config", None)
    model = getattr(vllm_config, "model_config", None)
    pictures = getattr(model, "multimodal_config", None)
    if pictures is None:
        raise HostError(
            f"{getattr(model, 'model', 'the model')}: the engine serves it as a model without "
            "pictures, so there is no tower to read depth of"
        )
    on = {
        "compilation_config.cudagraph_mm_encoder": "replays the tower's CUDA graph",
        "compilation_config.compile_mm_encoder": "compiles the tower's blocks",
    }
    for name, what in on.items():
        if getattr(compilation, name.rpartition(".")[2], False):
            raise HostError(
                f"{name} {what}, past the taps that depth is read with: leave it False, or serve "
                "without a head"
            )
    if getattr(pictures, "mm_encoder_tp_mode", None) == "data":
        raise HostError(
            "mm_encoder_tp_mode='data' gives each worker a part of the pictures only: use "
            "'weights', or serve without a head"
        )
