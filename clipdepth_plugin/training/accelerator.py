"""Processes, devices and precision of a run."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.precision import fastest_precision, imitates

if TYPE_CHECKING:
    from clipdepth_plugin.training.config import TrainConfig

logger = logging.getLogger(__name__)


def with_precision(config: TrainConfig) -> TrainConfig:
    """The config with the precision that is computed in: ``auto`` chosen, the others checked.

    Raises:
        TrainingError: This device only emulates it, or ``accelerate launch`` says another.
    """
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    precision: str = config.precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no" and precision not in ("auto", launched):
        raise TrainingError(
            f"precision: {precision}, but accelerate launch has --mixed_precision {launched}; "
            "leave one of the two out"
        )
    if precision == "auto":
        precision = fastest_precision(device) if launched == "no" else launched
        logger.info("precision: auto: %s on %s", precision, device)
    if precision == "bf16" and imitates(torch.bfloat16, device):
        raise TrainingError(
            "precision: bf16: this processor has no bfloat16 instructions and emulates them, eight "
            "times slower than float32: give precision: auto, or bf16-emulated to train so "
            "nevertheless (an existing token cache can only be used with the precision that it was "
            "made in)"
        )
    return config.model_copy(update={"precision": precision.removesuffix("-emulated")})


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Processes, devices and precision, as ``accelerate launch`` and the config say."""
    config = with_precision(config)
    # One process may train several heads; accelerate keeps the first one's precision otherwise.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.precision)
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise TrainingError(
            "FSDP of version 1 is not supported: accelerate launch --use_fsdp --fsdp_version 2"
        )
    if config.micro_batch % accelerator.num_processes:
        raise TrainingError(
            f"batch_size: {config.batch_size} in {config.gradient_accumulation} accumulated "
            f"batches can't be split over {accelerator.num_processes} processes"
        )
    return accelerator
