"""timm's vision transformers, alone or as open_clip's trunk.

Traits: the pooled vector passes ``fc_norm``, whatever pooled it; none is made by
``forward_features`` alone, by a ``forward`` that was replaced (OpenVLA's), or by a distilled tower.
CaiT's class token joins after the blocks that are tapped: its pooled vector is read off the last
norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.library_configs import from_open_clip, from_timm
from clipdepth_plugin.adapters.preprocessing import Preprocessing


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    late = hasattr(tower, "blocks_token_only")
    last = "norm" if late else "fc_norm"
    if not all(hasattr(tower, name) for name in ("patch_embed", "num_prefix_tokens", last)):
        return None
    size = getattr(tower.patch_embed, "img_size", None)
    return traits.TowerTraits(
        "timm",
        0 if late else int(tower.num_prefix_tokens),
        not late and getattr(tower, "cls_token", None) is not None,
        _late_pooled(tower) if late else _pooled(tower),
        _preprocessing(tower, ancestors),
        None if size is None else (int(size[0]), int(size[1])),
    )


def _pooled(tower: Any) -> traits.PooledTap | None:
    if hasattr(tower, "head_dist") or _forward_is_replaced(tower):
        return None
    pools = bool(getattr(tower, "global_pool", "")) or getattr(tower, "attn_pool", None) is not None
    return traits.PooledTap(tower.fc_norm, traits.as_is) if pools else None


def _forward_is_replaced(tower: Any) -> bool:
    """Whether another function than its class's runs, seen through accelerate's wrapping."""
    own = vars(tower).get("_old_forward", vars(tower).get("forward"))
    return own is not None and getattr(own, "__func__", None) is not type(tower).forward


def _late_pooled(tower: Any) -> traits.PooledTap | None:
    takes = {"token": traits.first_token, "avg": traits.mean_after_first}
    take = takes.get(str(tower.global_pool))
    return None if take is None else traits.PooledTap(tower.norm, take)


def _preprocessing(tower: nn.Module, ancestors: Sequence[nn.Module]) -> Preprocessing | None:
    """open_clip's, where the tower is its trunk; else timm's own."""
    parent = ancestors[-1] if ancestors else None
    if config := getattr(parent, "preprocess_cfg", None):
        return from_open_clip(config)
    return from_timm(getattr(tower, "pretrained_cfg", None) or {})
