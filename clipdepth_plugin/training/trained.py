"""TrainedHead, and its weights and optimiser state for checkpoints.

Axes: B views, N tokens, D width, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import TrainingError, shortened
from clipdepth_plugin.features import TowerFeatures, Views
from clipdepth_plugin.maps.placing import at_size

if TYPE_CHECKING:
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.training.losses import LossConfig

PlainRun = tuple[Mapping[int, Tensor], Tensor | None, Tensor | None, Size, Size]
"""Levels (B, N, D), context (B, D), pixels (B, 3, H, W) of the heads that read them, grid, and the
size of what each view shows."""

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TrainedHead(nn.Module):
    """A head that takes plain tensors, which DDP and FSDP know how to pass on.

    Auxiliary outputs that the loss does not weigh are frozen: no gradient would ever reach them,
    and DDP would wait for it.
    """

    def __init__(self, head: DepthHead, loss: LossConfig, *, patch_size: Size) -> None:
        """Takes the head."""
        super().__init__()
        self.head = head
        self._patch_size = patch_size
        for index, readout in enumerate(head.decoder.auxiliary_readouts()):
            readout.requires_grad_(any(loss.auxiliary[index : index + 1]))

    def forward(self, runs: Sequence[PlainRun], size: Size) -> DepthEstimate:
        """Maps of ``size`` (H, W) of all views in order; the auxiliary ones in training alone.

        Views of one size go through the head together, wherever they are.
        """
        places: dict[tuple[Size, Size], list[int]] = {}
        for place, (*_, grid, pixel_size) in enumerate(runs):
            places.setdefault((grid, pixel_size), []).append(place)
        features = [_joined([runs[place] for place in same]) for same in places.values()]
        natives = [self.head.estimate(one, auxiliary=self.training) for one in features]
        views = [Views(one.batch, *of) for one, of in zip(features, places, strict=True)]
        order_B = _order(runs, list(places.values()))

        def placed(maps: Sequence[Tensor]) -> Tensor:
            map_B1HW = at_size(maps, views, self._patch_size, size)
            return map_B1HW if order_B is None else map_B1HW[order_B.to(map_B1HW.device)]

        scales = [one.log_scale for one in natives if one.log_scale is not None]
        return DepthEstimate(
            placed([one.depth for one in natives]),
            placed(scales) if scales else None,
            tuple(map(placed, zip(*(one.auxiliary for one in natives), strict=True))),
        )


def _joined(runs: Sequence[PlainRun]) -> TowerFeatures:
    """The features of runs of one size."""
    whole = [
        TowerFeatures(levels, context_BD, grid, pixels_B3HW)
        for levels, context_BD, pixels_B3HW, grid, _ in runs
    ]
    if len(whole) == 1:
        return whole[0]
    contexts = [one.context for one in whole if one.context is not None]
    pixels = [one.pixels for one in whole if one.pixels is not None]
    return TowerFeatures(
        {level: torch.cat([one.levels[level] for one in whole]) for level in whole[0].levels},
        torch.cat(contexts) if contexts else None,
        whole[0].grid,
        torch.cat(pixels) if pixels else None,
    )


def _order(runs: Sequence[PlainRun], places: Sequence[Sequence[int]]) -> Tensor | None:
    """For each view in order its row among those joined by size; None where it is its own."""
    if len(places) == 1:
        return None
    counts = [len(next(iter(levels.values()))) for levels, *_ in runs]
    rows = torch.arange(sum(counts)).split(counts)
    return torch.cat([rows[place] for same in places for place in same]).argsort()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole model's weights, on the CPU; maybe empty in all but the first process.

    Call it in every process.
    """
    tensors: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    # On the CPU they are the model's own, and would change with it.
    return {name: x.clone() for name, x in tensors.items()}


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads what ``model_tensors`` gave, in every process."""
    _check(tensors, model_tensors(model))
    try:
        set_model_state_dict(model, dict(tensors), options=_WHOLE)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the checkpoint is of another head than the config makes now: {error}; train with "
            "the version that began the run, or start anew"
        ) from error


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state: ``<parameter>|<quantity>`` -> tensor. Call it in every process."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimiser, options=_WHOLE)
    return {
        f"{name}|{quantity}": torch.as_tensor(x)
        for name, quantities in state.get("state", {}).items()
        for quantity, x in quantities.items()
    }


def load_optimiser_tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Loads what ``optimiser_tensors`` gave, in every process; its options are the config's."""
    now = optimiser_tensors(model, optimiser)
    # It has no state of parameters that never had a gradient.
    _check(tensors, {name: x for name, x in now.items() if name in tensors or not tensors})
    state: dict[str, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        parameter, _, quantity = name.rpartition("|")
        state.setdefault(parameter, {})[quantity] = x
    groups = get_optimizer_state_dict(model, optimiser)["param_groups"]
    whole: Any = {"state": state, "param_groups": groups}
    try:
        set_optimizer_state_dict(model, optimiser, whole, options=_WHOLE)
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise TrainingError(
            f"the checkpoint's optimiser state is not of this head's optimiser: {error!r}; train "
            "with the version that began the run, or start anew"
        ) from error


def _check(tensors: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Checks names and shapes; in a sharded run only the first process has those of now."""
    other = [
        name
        for name in sorted({*tensors, *now})
        if name not in tensors or name not in now or tensors[name].shape != now[name].shape
    ]
    if now and other:
        raise TrainingError(
            f"the checkpoint is of another head than the config makes now ({shortened(other)}); "
            "train with the version that began the run, or start anew"
        )
