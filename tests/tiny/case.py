"""HostCase: one row of the host table, and the pictures and prompts that its hosts are run on.

Axes: B views, T tokens with prefix tokens, D width, H W pixels.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, DEPTH, IMAGE, PATCH, BATCH = 32, 4, 32, 8, 2
IMAGE_TOKEN, VIDEO_TOKEN = 90, 91
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
Outputs = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """A tiny random host, how to run it, and the library's own word on what its tower saw.

    Attributes:
        name: For ids.
        title: What people call it; hosts of one title share a line in docs/hosts.md.
        build: Makes the host.
        tower: Path of its tower; releases before transformers 5.6 add ``vision_model`` to some.
        family: Family file that must recognise it.
        prefix: Number of prefix tokens.
        contexts: Context kinds it must offer.
        run: Runs the whole host on (B, 3, H, W) views; all of its outputs.
        levels: The library's own raw hidden states, (B, T, D) each, level 0 first.
        pooled: The library's own pooled vector (B, D), or None.
        inputs: All inputs of the host's forward and ``generate()`` for such views, or None where
            it does not generate.
        views: Views B of one run.
        passes: Tower passes of one run; their views together are the B.
        width: The tower's.
        tower_kwargs: What the tower takes beside pixels where it runs alone.
        choose: The ``tower`` argument of ``attach``, where the host has several.
        needs: What transformers must have for it.
        class_token: Number of its class token in a row.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    tower: str
    family: str
    prefix: int
    contexts: tuple[str, ...]
    run: Callable[[Any, Tensor], Outputs]
    levels: Callable[[Any, Tensor], list[Tensor]]
    pooled: Callable[[Any, Tensor], Tensor] | None = None
    inputs: Callable[[Tensor], dict[str, Any]] | None = None
    views: int = BATCH
    passes: int = 1
    width: int = WIDTH
    tower_kwargs: Mapping[str, Any] = field(default_factory=dict)
    choose: str | None = None
    needs: str | None = None
    class_token: int = 0

    def host(self) -> nn.Module:
        """A host of this test's own, with its fixed weights, in evaluation mode."""
        return fresh(self.build)

    def pixels(self, seed: int = 1) -> Tensor:
        """(B, 3, 32, 32) views for one run."""
        return pixels(seed, self.views)

    @property
    def absent(self) -> bool:
        """Whether the installed transformers lacks this host."""
        return self.needs is not None and self.needs not in library_names()


@functools.cache
def library_names() -> frozenset[str]:
    """What the installed transformers has; it takes a fifth of a second to say so each time."""
    import transformers

    return frozenset(dir(transformers))


@functools.cache
def _built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    """A copy of what ``build`` makes from seed 0: a copy takes half of the time."""
    host = copy.deepcopy(_built(build))
    torch.manual_seed(0)
    return host


def pixels(seed: int = 1, batch: int = BATCH, size: tuple[int, int] = (IMAGE, IMAGE)) -> Tensor:
    """(B, 3, H, W) random pixels."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def prompt(batch: int = BATCH, *, pictures: bool = True) -> dict[str, Tensor]:
    """Token ids of a prompt, with one picture's placeholders in each row or none."""
    return placeholders([[(IMAGE // PATCH) ** 2 if pictures else 0]] * batch)


def placeholders(counts: Sequence[Sequence[int]], token: int = IMAGE_TOKEN) -> dict[str, Tensor]:
    """Token ids of a batch of prompts, padded on the left.

    Args:
        counts: For each prompt, the number of placeholders of each of its pictures.
        token: The placeholder.
    """
    rows = []
    for row in counts:
        pictures = [t for count in row for t in [4, *[token] * count]]
        rows.append([1, *pictures, 5, 6, 7])
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def hidden_states(tower: Any, x: Tensor) -> list[Tensor]:
    """Transformers' own raw hidden states of a tower."""
    # An argument where it is taken; InternVL's in transformers 4.57 reads its config alone.
    parameters = inspect.signature(tower.forward).parameters
    if any(name in parameters for name in ("output_hidden_states", "kwargs")):
        states = tower(pixel_values=x, output_hidden_states=True).hidden_states
    else:
        tower.config.output_hidden_states = True
        try:
            states = tower(pixel_values=x).hidden_states
        finally:
            tower.config.output_hidden_states = False
    if states is None:  # some inner modules of 4.57 and 5.5 record none: their parts, one by one
        states = [getattr(tower, "pre_layrnorm", nn.Identity())(tower.embeddings(x))]
        for layer in tower.encoder.layers:
            masked = "attention_mask" in inspect.signature(layer.forward).parameters
            states.append(layer(states[-1], **({"attention_mask": None} if masked else {})))
    return list(states)


def tensors(out: Any) -> Outputs:
    """All tensors of an output, however nested."""
    if isinstance(out, Tensor):
        return [out]
    if out is None:
        return []
    values = out.values() if hasattr(out, "values") else out
    return [x for value in values for x in tensors(value)]
