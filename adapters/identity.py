"""Tells a tower's weights from another's, so that a head is not put on the wrong tower."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import HeadMismatchError

logger = logging.getLogger(__name__)

_CASTS: dict[str, tuple[torch.dtype, ...]] = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "float16>bfloat16": (torch.float16, torch.bfloat16),
    "bfloat16>float16": (torch.bfloat16, torch.float16),
}
"""The dtypes in which a host may be stored and loaded, and what they do to its weights."""

_CHECKED = {torch.float64, *(casts[-1] for casts in _CASTS.values())}
_PER_TENSOR = 4096


def tower_hashes(tower: Tower) -> dict[str, str]:
    """Hash of a tower's weights as they are in each dtype that a host may load them in.

    Of the first 4096 numbers of every tensor of the patch embedding and the blocks; neither names
    nor order count, as these change between releases of the host's library.
    """
    return {name: _hash(list(_tensors(tower)), casts) for name, casts in _CASTS.items()}


def check_same_tower(
    tower: Tower, recorded: Mapping[str, str], name: str | None, *, other_tower: bool = False
) -> None:
    """Compares a tower with the one a head was trained on.

    It is the same where its weights, in a recorded dtype that holds them without loss, have the
    hash of that. Weights that can't be checked (quantised, on the meta device) are logged, and so
    is a tower that is the right one but for what PEFT put beside its weights (LoRA) since.
    """
    if not recorded:
        return
    every = list(_tensors(tower))
    own = list(_tensors(tower, adapters=False))
    dtypes = {x.dtype for x in own}
    if len(dtypes) != 1 or not dtypes <= _CHECKED or any(x.is_meta for x in own):
        logger.warning(
            "cannot check that %s holds the weights the head was trained on: they are quantised, "
            "of mixed dtypes, or not loaded",
            tower,
        )
    elif _is_recorded(every, recorded):
        return
    elif len(own) < len(every) and _is_recorded(own, recorded):
        logger.warning(
            "%s has LoRA weights that it had not when the head was trained: the head reads other "
            "features than it learnt from",
            tower,
        )
    elif other_tower:
        logger.warning(
            "the head was trained on %s; the weights of %s are not those (other_tower=True): its "
            "depth may be wrong",
            name or "another tower",
            tower,
        )
    else:
        raise HeadMismatchError(
            f"the head was trained on {name or 'another tower'}; the weights of {tower} are not "
            "those. Train a head for this tower, or load the host that the head names; "
            "other_tower=True (--other-tower) takes it as it is"
        )


def _is_recorded(tensors: list[Tensor], recorded: Mapping[str, str]) -> bool:
    """Whether the tensors, as they are, may be those recorded.

    Only casts that lose nothing are tried: others would hide further training that they round away.
    """
    for name, expected in recorded.items():
        if casts := _CASTS.get(name):
            heads = [x.detach().flatten()[:_PER_TENSOR] for x in tensors]
            exact = all(torch.equal(x.to(casts[-1]).to(x.dtype), x) for x in heads)
            if exact and _hash(heads, casts[-1:]) == expected:
                return True
    return False


def _tensors(tower: Tower, *, adapters: bool = True) -> Iterator[Tensor]:
    """Parameters; without ``adapters`` none of PEFT's: ``q_proj.lora_A.default.weight``."""
    for module in (tower.patch_embed, *tower.blocks):
        for name, x in module.named_parameters():
            if adapters or not any(part.startswith("lora_") for part in name.split(".")):
                yield x


def _hash(tensors: Iterable[Tensor], casts: Sequence[torch.dtype]) -> str:
    digests = []
    for x in tensors:
        head = x.detach().flatten()[:_PER_TENSOR]
        for dtype in casts:
            head = head.to(dtype)
        raw = head.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        digests.append(hashlib.sha256(raw).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
