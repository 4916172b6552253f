"""Passes that depth is compared with: a host's tower, its prefill, a separate depth network.

Axes: B views, H W pixels, T tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.inputs import (
    OWN_CALL,
    TowerInputs,
    failures_as_errors,
    takes_pictures,
)
from clipdepth_plugin.latency.scopes import BaselineScope


@dataclass(frozen=True)
class Baseline:
    """One pass of a host, or of a part of it; ``tokens``: of its prompt, where there is one."""

    scope: BaselineScope
    call: Callable[[], object] = field(repr=False)
    tokens: int | None = None


def tower_baseline(tower: Tower, inputs: TowerInputs) -> Baseline:
    """A pass of the tower alone, run once here as a check."""
    problem = f"{type(tower.module).__name__} does not run on these inputs alone"
    advice = f"give others, {OWN_CALL}"
    if takes_pictures(tower):
        size = tuple(inputs.pixels.shape[-2:])
        problem, advice = _not_from(
            tower.module, f"({', '.join(map(str, tower.rule.takes))}) pixels"
        )
        if tower.image_size is not None and size != tower.image_size:
            problem = f"the tower {tower} is made for {tower.image_size} and can't be run at {size}"
            advice = "give a size that it takes"
    baseline = Baseline("tower", lambda: tower.module(inputs.pixels, **inputs.arguments))
    with failures_as_errors(problem, advice), torch.no_grad():
        baseline.call()
    return baseline


def has_prefill(model: nn.Module) -> bool:
    """Whether a model has a language model that reads picture tokens (transformers' config)."""
    return _image_token(model) is not None


def prefill_baseline(model: nn.Module, pixels_B3HW: Tensor, text_tokens: int = 32) -> Baseline:
    """A transformers model's pass over prompts: a picture's tokens in each, and text tokens."""
    token = _image_token(model)
    text_config = getattr(getattr(model, "config", None), "text_config", None)
    vocabulary = getattr(text_config, "vocab_size", None)
    if token is None or not isinstance(vocabulary, int):
        raise BenchError(f"{type(model).__name__} has no image token in its config: no prefill")
    explained = failures_as_errors(*_not_from(model, "token ids and (B, 3, H, W) pixels"))
    with explained, torch.no_grad():
        count = _count_image_tokens(model, pixels_B3HW) // len(pixels_B3HW)
        ids_BT = _prompt(len(pixels_B3HW), count, text_tokens, token, vocabulary)
        ids_BT = ids_BT.to(pixels_B3HW.device)
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        if "logits_to_keep" in parameters_of(model):
            inputs["logits_to_keep"] = 1  # as generate() does
        model(pixel_values=pixels_B3HW, **inputs)
    return Baseline(
        "prefill", lambda: model(pixel_values=pixels_B3HW, **inputs), tokens=ids_BT.shape[1]
    )


def _image_token(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    return None


def _count_image_tokens(model: Any, pixels_B3HW: Tensor) -> int:
    """Tokens that all pictures together take in the prompt."""
    found = model.get_image_features(pixel_values=pixels_B3HW)
    found = getattr(found, "pooler_output", found)  # transformers 5 wraps them
    parts = [found] if isinstance(found, Tensor) else list(found)
    return sum(part.numel() // part.shape[-1] for part in parts)


def _prompt(batch: int, pictures: int, text: int, token: int, vocabulary: int) -> Tensor:
    """(B, T) token ids, one beginning token first; text is any id but the picture's."""
    draws = torch.Generator().manual_seed(0)
    text_BT = torch.randint(3, vocabulary - 1, (batch, max(text, 1)), generator=draws)
    text_BT[text_BT == token] = 3
    picture_BT = torch.full((batch, pictures), token)
    return torch.cat([text_BT[:, :1], picture_BT, text_BT[:, 1:]], dim=1)


def _not_from(module: nn.Module, inputs: str) -> tuple[str, str]:
    """Problem and advice where a model does not run on these inputs alone."""
    return (
        f"{type(module).__name__} does not run on {inputs} alone",
        f"measure its tower (--scope tower), {OWN_CALL}",
    )


def depth_anything_v2_small() -> nn.Module:
    """Depth Anything V2, small (arXiv 2406.09414), with random weights: 24.8 M parameters.

    transformers' default config is that of this size.
    """
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = DepthAnythingForDepthEstimation(DepthAnythingConfig())
    return model.eval()


def separate_passes(
    sizes: Iterable[int], like: Tensor, batch: int = 1
) -> dict[str, Callable[[], object]]:
    """Name -> a pass of the separate network, for each size; resizing is not counted.

    The square pictures have ``like``'s device and dtype.
    """
    sizes = tuple(sizes)
    if not sizes:
        return {}
    network = depth_anything_v2_small().to(like)

    def pass_of(size: int) -> Callable[[], object]:
        pixels_B3HW = torch.randn(batch, 3, size, size).to(like)
        return lambda: network(pixel_values=pixels_B3HW)

    return {f"Depth-Anything-V2-S at {size}": pass_of(size) for size in sizes}
