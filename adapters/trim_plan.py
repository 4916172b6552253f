"""What of a tower a host throws away: LLaVA and its kin read hidden state -2.

Which hosts do so was read in their code; nothing is guessed of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipdepth_plugin.adapters.towers import Tower

# Read in transformers 4.57, 5.5 and 5.24: their get_image_features and get_video_features take
# hidden_states[layer] of the tower's output, and nothing else of it.
FAMILIES = frozenset(
    f"transformers.models.{name}.modeling_{name}"
    for name in (
        "aya_vision",
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "video_llava",
        "vipllava",
    )
)
# Read there, too: hidden state k of these towers is the raw output of block k, 0 enters the first.
_TOWERS = frozenset(f"transformers.models.{name}.modeling_{name}" for name in ("clip", "siglip"))
_LAYERS = ("vision_feature_layer", "vision_feature_layers")


@dataclass(frozen=True)
class TrimPlan:
    """What ``attach(..., trim=True)`` can leave out.

    Attributes:
        blocks: Module paths of the blocks that neither the host nor the head needs.
        why: Why these, or why none.
    """

    blocks: tuple[str, ...]
    why: str


def plan_trim(
    host: nn.Module, tower: Tower, last_level: int = 0, *, pooled: bool = False
) -> TrimPlan:
    """What of a tower can be left out of a host's own passes.

    Args:
        host: The host.
        tower: Its tower.
        last_level: The deepest level that the head reads; 0 for what no head forbids.
        pooled: Whether the head reads the tower's pooled vector.
    """
    owner, _ = owner_of(host, tower)
    if owner is None:
        return TrimPlan((), "this host is not of a family known to read one hidden state only")
    if type(tower.module).__module__ not in _TOWERS:
        name = type(tower.module).__name__
        return TrimPlan((), f"{name} is no tower whose hidden states are known to be its blocks'")
    config = {name: getattr(owner.config, name, None) for name in _LAYERS}
    needed = deepest(layers_in(config), tower.depth)
    if needed is None:
        return TrimPlan((), "the host's config names no vision_feature_layer")
    if pooled:
        return TrimPlan((), "the head reads the pooled vector, which all blocks make")
    keep = max(needed, last_level, 1)
    if keep >= tower.depth:
        head = f", the head level {last_level}" if last_level else ""
        return TrimPlan((), f"the host reads level {needed}{head}: all run")
    paths = tuple(f"{tower.blocks_path}.{index}" for index in range(keep, tower.depth))
    head = f", the head than {last_level}" if last_level else ""
    return TrimPlan(paths, f"the host reads no further than level {needed}{head}")


def owner_of(host: nn.Module, tower: Tower) -> tuple[Any, str]:
    """The model that calls the tower, where it is of a family that is known, and its path."""
    parts = tower.path.split(".") if tower.path else []
    for count in range(len(parts) - 1, -1, -1):
        path = ".".join(parts[:count])
        module = host.get_submodule(path)
        if type(module).__module__ in FAMILIES:
            return module, path
    return None, ""


def modules_between(host: nn.Module, tower: Tower) -> tuple[nn.Module, ...]:
    """The modules from what that model calls to the tower, outermost first."""
    _, above = owner_of(host, tower)
    parts = tower.path.split(".") if tower.path else []
    first = len(above.split(".")) + 1 if above else 1
    paths = [".".join(parts[:count]) for count in range(first, len(parts) + 1)]
    return tuple(host.get_submodule(path) for path in paths) or (tower.module,)


def layers_in(given: Mapping[str, Any]) -> Any:
    """The hidden states that arguments or a config name; None where they name none."""
    return next((v for name in _LAYERS if (v := given.get(name)) is not None), None)


def deepest(layers: Any, depth: int) -> int | None:
    """The deepest level among indices of hidden states, negative ones from behind."""
    indices = [layers] if isinstance(layers, int) else layers
    if not isinstance(indices, list | tuple) or not indices:
        return None
    if not all(isinstance(index, int) and -depth - 1 <= index <= depth for index in indices):
        return None
    return int(max(index % (depth + 1) for index in indices))
