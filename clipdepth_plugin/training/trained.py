"""TrainedHead, and its weights and optimiser state for checkpoints.

Axes: B views, N tokens, D width, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Mapping
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

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TrainedHead(nn.Module):
    """A head that takes plain tensors, which DDP and FSDP know how to pass on.

    Auxiliary outputs that the loss does not weigh are frozen: no gradient would ever reach them,
    and DDP would wait for it.
    """

    def __init__(
        self, head: DepthHead, loss: LossConfig, *, patch_size: Size, pixel_size: Size
    ) -> None:
        """Takes the head."""
        super().__init__()
        self.head = head
        self._patch_size, self._pixel_size = patch_size, pixel_size
        for index, readout in enumerate(head.decoder.auxiliary_readouts()):
            readout.requires_grad_(any(loss.auxiliary[index : index + 1]))

    def forward(
        self,
        levels: Mapping[int, Tensor],
        context_BD: Tensor | None,
        pixels_B3HW: Tensor | None,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> DepthEstimate:
        """Maps of ``size`` (H, W); the auxiliary ones in training alone.

        ``levels`` are (B, N, D) each, ``grid`` is (h, w), and pixels are given as the tower took
        them to the heads that read them.
        """
        features = TowerFeatures(levels, context_BD, grid, pixels_B3HW)
        native: DepthEstimate = self.head.estimate(features, auxiliary=self.training)
        views = [Views(features.batch, grid, self._pixel_size)]

        def placed(map_B1HW: Tensor) -> Tensor:
            return at_size([map_B1HW], views, self._patch_size, size)

        return DepthEstimate(
            placed(native.metres),
            None if native.log_scale is None else placed(native.log_scale),
            tuple(map(placed, native.auxiliary)),
        )


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
