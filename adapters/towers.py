"""Tower: all that the taps need to know of a host's vision tower; find and choose one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from clipdepth_plugin.adapters.families.registry import read_traits
from clipdepth_plugin.adapters.layout_rules import LayoutRule
from clipdepth_plugin.adapters.modules import unwrapped
from clipdepth_plugin.adapters.plain import PlainRule
from clipdepth_plugin.adapters.refusals import nothing_found
from clipdepth_plugin.adapters.structure import (
    Misfit,
    Skeleton,
    find_skeletons,
    modules_around,
)
from clipdepth_plugin.adapters.traits import TowerTraits, parameters_of, required_by
from clipdepth_plugin.adapters.unreadable import why_unreadable
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.config import ContextKind
from clipdepth_plugin.errors import HostError, TowerNotFoundError


@dataclass(frozen=True, kw_only=True)
class Tower(TowerTraits):
    """A vision tower inside a host: its traits, and what its structure says.

    Attributes:
        path: Module path in the host; "" where the host is the tower.
        blocks_path: Path of the block list.
        width: D.
        patch_size: (height, width) of a patch in pixels.
        sequence_first: Whether the blocks run (N, B, D).
    """

    path: str
    blocks_path: str
    width: int
    patch_size: tuple[int, int]
    sequence_first: bool
    rule: LayoutRule = field(repr=False)
    module: nn.Module = field(repr=False)
    blocks: tuple[nn.Module, ...] = field(repr=False)
    patch_embed: nn.Module = field(repr=False)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patch grid (h, w) at the tower's own input size."""
        if self.image_size is None:
            return None
        return (
            self.image_size[0] // self.patch_size[0],
            self.image_size[1] // self.patch_size[1],
        )

    @property
    def contexts(self) -> tuple[ContextKind, ...]:
        """Context kinds that a head can be given here, best first."""
        kinds: list[ContextKind] = []
        if self.pooled is not None:
            kinds.append("pooled")
        if self.has_class_token:
            kinds.append("cls")
        return (*kinds, "mean")

    def __str__(self) -> str:
        where = self.path or "(the host itself)"
        return (
            f"{where}: {self.family}, {self.depth} blocks ({self.blocks_path}), width {self.width}"
        )


def find_towers(model: nn.Module) -> list[Tower]:
    """All vision towers of a model that can be tapped, in the order of its modules.

    Args:
        model: Any torch module: a tower, a CLIP, a VLM, a policy. It is only looked at.

    Returns:
        The candidates; empty where there is none.

    Raises:
        HostError: It is no torch module.
    """
    return _find(model)[0]


def choose_tower(model: nn.Module, path: str | None = None) -> Tower:
    """The tower to tap: the only one, or the one that ``path`` names.

    That is the path of the tower, of its block list, or of a module around it; a tower at just that
    path comes before those inside.
    """
    if path is not None:
        check_type(path, str, "tower", TowerNotFoundError)
    towers, misfits = _find(model)
    name, found = type(model).__name__, f"Found: {'; '.join(map(str, towers))}"
    if not towers:
        raise TowerNotFoundError(nothing_found(model, misfits))
    if path is not None:
        chosen = [t for t in towers if path in (t.path, t.blocks_path)]
        chosen = chosen or [t for t in towers if not path or f"{t.path}.".startswith(f"{path}.")]
        if len(chosen) != 1:
            what = "no vision tower" if not chosen else f"{len(chosen)} vision towers"
            raise TowerNotFoundError(f"{name}: {what} at {path!r}. {found}")
        return chosen[0]
    if len(towers) > 1:
        raise TowerNotFoundError(
            f"{name}: {len(towers)} vision towers; choose one with tower=... {found}"
        )
    return towers[0]


def _find(model: nn.Module) -> tuple[list[Tower], list[Misfit]]:
    """The towers of a model, and what looks like one and can't be tapped."""
    if not isinstance(model, nn.Module):
        raise HostError(
            f"the host is {type(model).__name__}, expected the model itself, a torch.nn.Module "
            "(of a pipeline or a loaded host: its .model)"
        )
    skeletons, misfits = find_skeletons(model)
    described = [_describe(model, skeleton) for skeleton in skeletons]
    towers = [one for one in described if isinstance(one, Tower)]
    return towers, misfits + [one for one in described if isinstance(one, Misfit)]


def _describe(model: nn.Module, skeleton: Skeleton) -> Tower | Misfit:
    embedding, block_list = skeleton.patch_embedding, skeleton.block_list
    module = model.get_submodule(skeleton.path)
    traits = read_traits(module, block_list.width, modules_around(model, skeleton.path))
    sequence_first = _runs_sequence_first(block_list.blocks[0])
    rule = traits.rule
    if rule is None and (why := why_unreadable(module, embedding, block_list)) is not None:
        return Misfit(embedding.path, why)
    if rule is None:
        rule = PlainRule(
            traits.num_prefix_tokens,
            sequence_first,
            embedding.patch_size,
            parameters_of(module),
            needs_more=len(required_by(module)) > 1,
        )
    given: dict[str, Any] = {**vars(traits), "rule": rule}
    return Tower(
        **given,
        path=skeleton.path,
        blocks_path=block_list.path,
        width=block_list.width,
        patch_size=embedding.patch_size,
        sequence_first=sequence_first,
        module=module,
        blocks=block_list.blocks[: traits.patch_blocks] + traits.more_blocks,
        patch_embed=traits.stem or embedding.module,
    )


def _runs_sequence_first(block: nn.Module) -> bool:
    """Torch's own attention says whether it takes (N, B, D); all others take (B, N, D)."""
    return any(
        isinstance(module, nn.MultiheadAttention) and not module.batch_first
        # PEFT keeps what it adapts under base_layer.
        for module in (getattr(one, "base_layer", one) for one in unwrapped(block).children())
    )
