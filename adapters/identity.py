"""Tells a tower's weights from another's, so that a head is not put on the wrong tower."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import HeadMismatchError

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PER_TENSOR = 4096


def tower_hashes(tower: Tower) -> dict[str, str]:
    """Hash of a tower's weights as they are in each dtype that a host may load them in.

    Of the first 4096 numbers of every tensor of the patch embedding and the blocks; neither
    names nor order count, as these change between releases of the host's library. What PEFT put
    beside them (LoRA) is left out.
    """
    return {_name(dtype): _hash(tower, dtype) for dtype in _DTYPES}


def check_same_tower(tower: Tower, recorded: Mapping[str, str], name: str | None) -> None:
    """Compares a tower with the one a head was trained on.

    Where nothing is recorded there is nothing to check; where the tower's dtype is not among
    the recorded (quantised, on the meta device) that is logged.

    Raises:
        HeadMismatchError: The weights are others.
    """
    if not recorded:
        return
    modules = (tower.patch_embed, *tower.blocks)
    if any(_is_adapters(name) for one in modules for name, _ in one.named_parameters()):
        logger.warning(
            "%s has LoRA weights beside its own: what the head reads is no longer quite what it "
            "was trained on",
            tower,
        )
    dtypes = {x.dtype for x in _tensors(tower)}
    on_meta = any(x.is_meta for x in _tensors(tower))
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    expected = recorded.get(_name(dtype)) if dtype is not None and not on_meta else None
    if expected is None or dtype is None:
        logger.warning(
            "cannot check that %s holds the weights the head was trained on: they are quantised, "
            "of mixed dtypes, or not loaded",
            tower,
        )
    elif _hash(tower, dtype) != expected:
        raise HeadMismatchError(
            f"the head was trained on {name or 'another tower'}; the weights of {tower} are not "
            "those. Train a head for this tower, or load the host that the head names"
        )


def _tensors(tower: Tower) -> Iterator[Tensor]:
    for module in (tower.patch_embed, *tower.blocks):
        for name, x in module.named_parameters():
            if not _is_adapters(name):
                yield x


def _is_adapters(name: str) -> bool:
    """Whether a parameter is PEFT's beside the tower's own: ``q_proj.lora_A.default.weight``."""
    return any(part.startswith("lora_") for part in name.split("."))


def _hash(tower: Tower, dtype: torch.dtype) -> str:
    digests = []
    for x in _tensors(tower):
        head = x.detach().flatten()[:_PER_TENSOR].to(dtype).cpu().contiguous()
        digests.append(hashlib.sha256(head.view(torch.uint8).numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
