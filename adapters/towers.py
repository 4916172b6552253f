"""Tower: all that the taps need to know of a host's vision tower; find and choose one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from clipdepth_plugin.adapters.families.registry import read_traits
from clipdepth_plugin.adapters.layouts import LayoutRule
from clipdepth_plugin.adapters.plain import PACKING, PlainRule
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.refusals import nothing_found
from clipdepth_plugin.adapters.structure import (
    Misfit,
    Skeleton,
    find_skeletons,
    modules_around,
    unwrapped,
)
from clipdepth_plugin.adapters.traits import (
    HiddenStateReaders,
    PooledTap,
    parameters_of,
    required_by,
)
from clipdepth_plugin.config import ContextKind
from clipdepth_plugin.errors import HostError, TowerNotFoundError


@dataclass(frozen=True)
class Tower:
    """A vision tower inside a host.

    Attributes:
        path: Module path in the host; "" where the host is the tower.
        family: The family file that knows it, or "unknown".
        blocks_path: Path of the block list.
        width: D.
        patch_size: (height, width) of a patch in pixels.
        num_prefix_tokens: Tokens before the patches in every block's output.
        has_class_token: Whether the first of them is a class token.
        sequence_first: Whether the blocks run (N, B, D).
        image_size: (H, W) the tower was made for, where it says.
        preprocessing: What is known of the host's preprocessing.
        rule: Makes the layout of each pass's tokens.
        module: The tower itself.
        blocks: Its blocks, in order.
        patch_embed: Its patch embedding.
        pooled: Where its pooled vector passes by, or None.
        read_by: Hosts that may do without its last blocks, or None.
    """

    path: str
    family: str
    blocks_path: str
    width: int
    patch_size: tuple[int, int]
    num_prefix_tokens: int
    has_class_token: bool
    sequence_first: bool
    image_size: tuple[int, int] | None
    preprocessing: Preprocessing | None
    rule: LayoutRule = field(repr=False)
    module: nn.Module = field(repr=False)
    blocks: tuple[nn.Module, ...] = field(repr=False)
    patch_embed: nn.Module = field(repr=False)
    pooled: PooledTap | None = field(repr=False)
    read_by: HiddenStateReaders | None = field(repr=False)

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

    Args:
        model: The host.
        path: Module path of the tower, of its block list, or of a module around it. A tower
            at just that path comes before those inside.

    Raises:
        TowerNotFoundError: None was found, none is at that path, or several are and the choice
            is open. Says what was found instead.
        HostError: The host is no torch module.
    """
    towers, misfits = _find(model)
    name = type(model).__name__
    if not towers:
        raise TowerNotFoundError(nothing_found(model, misfits))
    if path is not None:
        chosen = [t for t in towers if path in (t.path, t.blocks_path)]
        chosen = chosen or [t for t in towers if _inside(t.path, path)]
        if len(chosen) != 1:
            what = "no vision tower" if not chosen else f"{len(chosen)} vision towers"
            raise TowerNotFoundError(f"{name}: {what} at {path!r}. {_candidates(towers)}")
        return chosen[0]
    if len(towers) > 1:
        raise TowerNotFoundError(
            f"{name}: {len(towers)} vision towers; choose one with tower=... {_candidates(towers)}"
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
    if rule is None and embedding.packed:
        return Misfit(
            embedding.path, "maps patches of pictures or videos in an order that no adapter knows"
        )
    if embedding.padding != (0, 0):
        return Misfit(
            embedding.path,
            f"pads its pictures by {embedding.padding} (rows, columns), so that a patch is not "
            "where its number says",
        )
    if any(hasattr(part, "random_masking") for part in module.modules()):
        return Misfit(embedding.path, "feeds a masked autoencoder, which shuffles its patches")
    if rule is None and (needed := [name for name in required_by(module) if name in PACKING]):
        return Misfit(
            embedding.path,
            f"feeds a tower that needs {needed[0]}, which says how its tokens are packed, in an "
            "order that no adapter knows",
        )
    if rule is None:
        rule = PlainRule(
            traits.num_prefix_tokens,
            sequence_first,
            embedding.patch_size,
            parameters_of(module),
            needs_more=len(required_by(module)) > 1,
        )
    return Tower(
        path=skeleton.path,
        family=traits.family,
        blocks_path=block_list.path,
        width=block_list.width,
        patch_size=embedding.patch_size,
        num_prefix_tokens=traits.num_prefix_tokens,
        has_class_token=traits.has_class_token,
        sequence_first=sequence_first,
        image_size=traits.image_size,
        preprocessing=traits.preprocessing,
        rule=rule,
        module=module,
        blocks=block_list.blocks + traits.more_blocks,
        patch_embed=embedding.module,
        pooled=traits.pooled,
        read_by=traits.read_by,
    )


def _runs_sequence_first(block: nn.Module) -> bool:
    """Torch's own attention says whether it takes (N, B, D); all others take (B, N, D)."""
    return any(
        isinstance(module, nn.MultiheadAttention) and not module.batch_first
        # PEFT keeps what it adapts under base_layer.
        for module in (getattr(one, "base_layer", one) for one in unwrapped(block).children())
    )


def _inside(path: str, around: str) -> bool:
    return path == around or path.startswith(f"{around}.") or around == ""


def _candidates(towers: list[Tower]) -> str:
    return "Found: " + "; ".join(map(str, towers))
