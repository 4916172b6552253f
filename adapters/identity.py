"""Tells a tower's weights from another's, so that a head is not put on the wrong tower."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping

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
    names nor order count, as these change between releases of the host's library.
    """
    return {_name(dtype): _hash(_tensors(tower), dtype) for dtype in _DTYPES}


def check_same_tower(tower: Tower, recorded: Mapping[str, str], name: str | None) -> None:
    """Compares a tower with the one a head was trained on.

    Where nothing is recorded there is nothing to check; where the tower's dtype is not among
    the recorded (quantised, on the meta device) that is logged, and so is a tower that is the right
    one but for what PEFT put beside its weights (LoRA) since.

    Raises:
        HeadMismatchError: The weights are others.
    """
    if not recorded:
        return
    every = list(_tensors(tower))
    own = list(_tensors(tower, adapters=False))
    expected = _recorded_for(own, recorded)
    if expected is None:
        logger.warning(
            "cannot check that %s holds the weights the head was trained on: they are quantised, "
            "of mixed dtypes, or not loaded",
            tower,
        )
        return
    dtype = own[0].dtype
    if _hash(every, dtype) == expected:
        return
    if len(own) == len(every) or _hash(own, dtype) != expected:
        raise HeadMismatchError(
            f"the head was trained on {name or 'another tower'}; the weights of {tower} are not "
            "those. Train a head for this tower, or load the host that the head names"
        )
    logger.warning(
        "%s has LoRA weights that it had not when the head was trained: what the head reads is "
        "no longer quite what it knows",
        tower,
    )


def _recorded_for(tensors: list[Tensor], recorded: Mapping[str, str]) -> str | None:
    """The hash that such tensors should have; None where they are none that can be hashed."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) != 1 or any(x.is_meta for x in tensors):
        return None
    return recorded.get(_name(dtypes.pop()))


def _tensors(tower: Tower, *, adapters: bool = True) -> Iterator[Tensor]:
    """Parameters; without ``adapters`` none of PEFT's: ``q_proj.lora_A.default.weight``."""
    for module in (tower.patch_embed, *tower.blocks):
        for name, x in module.named_parameters():
            if adapters or not any(part.startswith("lora_") for part in name.split(".")):
                yield x


def _hash(tensors: Iterable[Tensor], dtype: torch.dtype) -> str:
    digests = []
    for x in tensors:
        head = x.detach().flatten()[:_PER_TENSOR].to(dtype).cpu().contiguous()
        digests.append(hashlib.sha256(head.view(torch.uint8).numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
