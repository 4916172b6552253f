"""Inputs of a tower that takes no plain pictures, as its host's own image processor makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin.adapters.loading import LoadedHost
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.inputs import (
    OWN_CALL,
    TowerInputs,
    failures_as_errors,
    input_size,
    seen_inputs,
    takes_pictures,
)

_PIXELS = ("pixel_values", "flattened_patches")
_OF_IMAGES = "image_"
"""Before names of processors' outputs which towers take without it (``image_grid_thw``)."""


def processed_inputs(
    model: nn.Module, tower: Tower, processor: Any, batch: int, size: Size | None = None
) -> TowerInputs:
    """What a tower gets of random pictures of a size, as the host's image processor makes them.

    Raises:
        BenchError: It is no processor, or the host does not take what it makes.
    """
    processor = getattr(processor, "image_processor", processor)
    if not callable(processor):
        raise BenchError(
            f"processor is {type(processor).__name__}, expected the host's image processor itself "
            "(AutoImageProcessor.from_pretrained(...))"
        )
    height, width = input_size(tower, size)
    draws = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draws.integers(256, size=(height, width, 3), dtype=np.uint8))
        for _ in range(batch)
    ]
    problem = f"{type(model).__name__} does not run on what {type(processor).__name__} makes"
    advice = f"give the host's own processor and a size that it takes, {OWN_CALL}"
    with failures_as_errors(f"{problem} of pictures of {height} x {width}", advice):
        made = processor(images=pictures, return_tensors="pt")
        weight = next(tower.patch_embed.parameters())
        return seen_inputs(tower, _vision_of(model, tower, _moved(dict(made), weight)))[0]


def needed_processor(host: LoadedHost, tower: Tower) -> Any:
    """The image processor that makes the tower's inputs; None where it takes plain pictures.

    Raises:
        BenchError: It can't be loaded; says what to do.
    """
    if takes_pictures(tower):
        return None
    problem = (
        f"{host.label}: its tower takes no (B, 3, H, W) pixels, and the image processor that makes "
        "what it takes can't be loaded"
    )
    advice = f"put the host's preprocessor_config.json beside its config.json, {OWN_CALL}"
    if host.load_processor is None:
        raise BenchError(f"{problem}: its library has none; {OWN_CALL.removeprefix('or ')}")
    with failures_as_errors(problem, advice):
        return host.load_processor()


def _moved(value: Any, weight: Tensor) -> Any:
    """On the tower's device; floats in its dtype."""
    if isinstance(value, Tensor):
        return value.to(weight) if value.is_floating_point() else value.to(weight.device)
    if isinstance(value, dict):
        return {name: _moved(one, weight) for name, one in value.items()}
    return [_moved(one, weight) for one in value] if isinstance(value, list | tuple) else value


def _vision_of(model: nn.Module, tower: Tower, made: Mapping[str, Any]) -> Callable[[], object]:
    """The host's own way from a processor's output through its tower; else the tower alone."""
    # Of several around each other, the outer ones may only pass on what they are given.
    for module in reversed(modules_around(model, tower.path)):
        features = getattr(module, "get_image_features", None)
        known = inspect.signature(features).parameters if callable(features) else {}
        if callable(features) and _PIXELS[0] in known:
            return partial(features, **{name: x for name, x in made.items() if name in known})
    names = parameters_of(tower.module)
    given = {**{name.removeprefix(_OF_IMAGES): x for name, x in made.items()}, **made}
    pixels = next((given[name] for name in _PIXELS if name in given), None)
    told = {name: given[name] for name in names[1:] if name in given}
    return partial(tower.module, pixels, **told)
