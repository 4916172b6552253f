"""A host's connector: the module that makes the language model's visual tokens of the tower's.

It is found by structure: beside the tower, or inside it where the tower merges its own patches; it
ends at the width of the language model and does not attend, so that a visual token is of the
patches of one place. What attends (a resampler, a Q-former) has no such tokens and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from clipdepth_plugin.adapters.modules import has_attention, patch_embeddings
from clipdepth_plugin.adapters.structure import modules_around
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.errors import HostError


@dataclass(frozen=True)
class Connector:
    """Where a host's visual tokens come out.

    Attributes:
        path: Module path in the host.
        width: Of a visual token.
        merge: Side m of the square of patches that makes one; None where the host does not say.
    """

    path: str
    module: nn.Module = field(repr=False)
    width: int
    merge: int | None


def find_connector(host: nn.Module, tower: Tower, path: str | None = None) -> Connector:
    """The connector behind a tower.

    Args:
        host: The model.
        tower: Its tower.
        path: The connector's module path, where the structure does not tell.

    Raises:
        HostError: There is none, several, or one that mixes the patches of all places.
    """
    holders = [*enumerate(modules_around(host, tower.path))][::-1]
    if path is not None:
        return _connector(path, _named(host, path), tower, [one for _, one in holders])
    width = _language_width(tower, [one for _, one in holders])
    inside = [(None, tower.module)] if tower.rule.square > 1 else []
    parts = tower.path.split(".")
    for number, holder in [*inside, *holders]:
        found = [*_candidates(holder, tower, width)] if width is not None else []
        if not found:
            continue
        around = tower.path if number is None else ".".join(parts[:number])
        names = [f"{around}.{name}" if around else name for name, _ in found]
        if len(found) > 1:
            raise HostError(
                f"several modules may make the visual tokens ({', '.join(names)}): name one with "
                "connector=..."
            )
        _refuse_resamplers(holder, tower, found[0][1])
        return _connector(names[0], found[0][1], tower, [one for _, one in holders])
    raise HostError(
        f"no connector found behind {tower}: no module beside it maps its tokens to the width of "
        "a language model without attending (a tower alone and a dual encoder have none, a "
        "resampler's tokens are no patches); name one with connector=..., if there is"
    )


def _named(host: nn.Module, path: str) -> nn.Module:
    check_type(path, str, "connector")
    try:
        return host.get_submodule(path)
    except AttributeError as error:
        raise HostError(f"connector: the host has no module {path!r}") from error


def _connector(
    path: str, module: nn.Module, tower: Tower, around: Sequence[nn.Module]
) -> Connector:
    widths = _widths(module)
    if widths is None:
        raise HostError(f"connector: {path!r} maps no tokens to another width")
    return Connector(path, module, widths[1], _merge(module, widths[0], tower, around))


def _merge(module: nn.Module, inputs: int, tower: Tower, around: Sequence[nn.Module]) -> int | None:
    """The side of the square, as the tower, a pooling or the connector's own width says it."""
    if tower.patch_blocks is not None:  # the tower's last blocks have other tokens
        return None
    if tower.rule.square > 1:
        return tower.rule.square
    for pooling in module.modules():
        if isinstance(pooling, nn.AvgPool2d):
            kernel = pooling.kernel_size
            return kernel if isinstance(kernel, int) and kernel == pooling.stride else None
    if any(_pools(one) for holder in (tower.module, *around[:1]) for one in holder.modules()):
        return None
    square, rest = divmod(inputs, tower.width * _levels_read(around))
    m = math.isqrt(square)
    return m if rest == 0 and m >= 1 and m * m == square else None


def _pools(module: nn.Module) -> bool:
    """Whether it may join tokens and leaves no trace in a width: a pooling without weights."""
    return "pool" in type(module).__name__.lower() and not any(True for _ in module.parameters())


def _levels_read(around: Sequence[nn.Module]) -> int:
    """How many levels a host joins to one token (a list in LLaVA's configs)."""
    for module in around:
        config = getattr(module, "config", None)
        for name in ("vision_feature_layer", "vision_feature_layers"):
            layers = getattr(config, name, None)
            if isinstance(layers, list | tuple) and layers:
                return len(layers)
    return 1


def _candidates(holder: nn.Module, tower: Tower, width: int) -> Iterator[tuple[str, nn.Module]]:
    """Children that end at the language model's width and neither see nor attend."""
    if hasattr(holder, "logit_scale"):  # a dual encoder: what it projects is compared, not read
        return
    seeing = {tower.module, tower.patch_embed, *tower.blocks}
    for name, child in holder.named_children():
        inside = set(child.modules())
        widths = None if isinstance(child, nn.ModuleList) else _widths(child)
        fits = widths is not None and widths[1] == width and not inside & seeing
        if fits and not any(map(_other, inside)):
            yield name, child


def _refuse_resamplers(holder: nn.Module, tower: Tower, connector: nn.Module) -> None:
    """What attends between tower and connector: one module that does so is the language model."""
    attending = []
    for name, child in holder.named_children():
        inside = {*child.modules()}
        seeing = bool({tower.module, *tower.blocks} & inside) or any(patch_embeddings(child))
        if child is not connector and not seeing and any(map(_attends, inside)):
            attending.append(name)
    if attending[1:]:
        raise HostError(
            f"beside the host's tower {', '.join(attending)} attend, one of which may make visual "
            "tokens that are of no patches; name the module that makes them with connector=..., if "
            "they are"
        )


def _other(module: nn.Module) -> bool:
    """What no connector has inside: attention, or a table of words."""
    return isinstance(module, nn.Embedding) or _attends(module)


def _attends(module: nn.Module) -> bool:
    return has_attention(module) or "attention" in type(module).__name__.lower()


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a module: of its first and last linear map; None where it has none."""
    sides = [
        (getattr(one, "in_features", None), getattr(one, "out_features", None))
        for one in module.modules()
    ]
    maps = [(i, o) for i, o in sides if isinstance(i, int) and isinstance(o, int)]
    maps = maps or [(p.shape[0], p.shape[1]) for p in module.parameters() if p.ndim == 2]
    return (maps[0][0], maps[-1][1]) if maps else None


def _language_width(tower: Tower, around: Sequence[nn.Module]) -> int | None:
    """Of the words of the language model that is nearest to the tower, innermost module first."""
    for module in around:
        for one in (module, *module.children()):
            table = _table(one, tower)
            if table is not None:
                return int(table.shape[-1])
    return None


def _table(module: nn.Module, tower: Tower) -> Tensor | None:
    """A module's table of words, as transformers' models name theirs."""
    embeddings = getattr(module, "get_input_embeddings", None)
    if embeddings is None:
        return None
    try:
        table = embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(table, nn.Module) or table in {*tower.module.modules()}:
        return None
    weight = getattr(table, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None
