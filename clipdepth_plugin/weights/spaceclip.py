"""Reads the checkpoints that SPACE-CLIP's authors' code writes (arXiv 2601.17657).

Names on their side are those of the released code's state dict; ours are ``DepthHead``'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HeadFileError, quoted, shortened
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.settings import STORED
from clipdepth_plugin.weights.tensors import (
    build_checked,
    check_plain,
    load_weights,
    read_safetensors,
)

# Tower weights that a checkpoint may carry beside the head's.
_TOWER_PREFIXES = ("clip_vision_model.", "vision_model.")
_WRAPPED = 8
# Their name -> ours in the decoder; {i} is a stage. "weight", "running_mean" and so on follow.
_NAMES: dict[str, str] = {
    "film_param_generators.{i}.0": "semantic.film.{i}.mlp.0",
    "film_param_generators.{i}.2": "semantic.film.{i}.mlp.2",
    "main_path_projections.{i}": "semantic.projections.{i}",
    "structural_path_projections.{i}": "structural.projections.{i}",
    "structural_decoder_blocks.{i}.upsample_low.upsample": "structural.stages.{i}.up.upsample",
    "structural_decoder_blocks.{i}.upsample_low.conv.0": "structural.stages.{i}.up.smooth.conv",
    "structural_decoder_blocks.{i}.upsample_low.conv.1": "structural.stages.{i}.up.smooth.norm",
    "structural_decoder_blocks.{i}.fusion_conv.0": "structural.stages.{i}.join.conv",
    "structural_decoder_blocks.{i}.fusion_conv.1": "structural.stages.{i}.join.norm",
    "main_decoder_blocks.{i}.upsample_low.upsample": "fusion.{i}.up.upsample",
    "main_decoder_blocks.{i}.upsample_low.conv.0": "fusion.{i}.up.smooth.conv",
    "main_decoder_blocks.{i}.upsample_low.conv.1": "fusion.{i}.up.smooth.norm",
    "main_decoder_blocks.{i}.skip_clip_gate.0": "fusion.{i}.semantic_gate.conv",
    "main_decoder_blocks.{i}.skip_struct_gate.0": "fusion.{i}.structural_gate.conv",
    "main_decoder_blocks.{i}.fusion_conv.0": "fusion.{i}.join.conv",
    "main_decoder_blocks.{i}.fusion_conv.1": "fusion.{i}.join.norm",
    "main_decoder_blocks.{i}.fusion_conv.3.conv1": "fusion.{i}.residual.first.conv",
    "main_decoder_blocks.{i}.fusion_conv.3.norm1": "fusion.{i}.residual.first.norm",
    "main_decoder_blocks.{i}.fusion_conv.3.conv2": "fusion.{i}.residual.conv",
    "main_decoder_blocks.{i}.fusion_conv.3.norm2": "fusion.{i}.residual.norm",
    "depth_prediction_head.0": "readout.hidden.conv",
    "depth_prediction_head.1": "readout.hidden.norm",
    "depth_prediction_head.3": "readout.to_depth",
    "aux_depth_heads.{i}.0": "auxiliary.{i}.hidden.conv",
    "aux_depth_heads.{i}.1": "auxiliary.{i}.hidden.norm",
    "aux_depth_heads.{i}.3": "auxiliary.{i}.to_depth",
}


def load_spaceclip(
    source: str | Path | Mapping[str, Any],
    *,
    semantic_levels: Sequence[int] = (12, 9, 6, 3),
    structural_levels: Sequence[int] = (2, 1, 0),
    context: str = "pooled",
) -> DepthHead:
    """Loads a head from a checkpoint of SPACE-CLIP's authors.

    Every size is read off the weights' shapes: width, channels, FiLM's hidden width, whether
    FiLM, the structural pathway and the auxiliary outputs are there. The levels cannot be read
    off the weights and must be given.

    Args:
        source: A state dict, or a .safetensors, .pt or .pth file (read with ``weights_only``).
            ``{"model": ...}`` is unwrapped; ``module.`` prefixes and the tower's keys are dropped.
        semantic_levels: Level of each decoder stage, first stage first.
        structural_levels: Level of each structural stage; ignored where there are none.
        context: Context kind that FiLM was trained with.

    Returns:
        The head in evaluation mode, float32.

    Raises:
        HeadFileError: A file is unreadable, a key is missing, unexpected or of a wrong shape, or
            the number of levels does not fit the stages.
    """
    if not isinstance(source, Mapping | str | os.PathLike):
        raise HeadFileError(f"source: got {quoted(source)}, expected a path or a state dict")
    name = "state dict" if isinstance(source, Mapping) else str(source)
    state = _rename(_unwrap(source if isinstance(source, Mapping) else _read(Path(source))), name)
    check_plain(state, name)
    config = _infer_config(state, name, semantic_levels, structural_levels, context)
    with torch.device("meta"):
        head = DepthHead(config)
    _check_complete(head.decoder, state, name)
    shapes = {key: tuple(x.shape) for key, x in state.items()}
    head.decoder = build_checked(lambda: DepthHead(config).decoder, shapes, name)
    load_weights(head.decoder, state, name)
    return head.eval()


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        raise HeadFileError(
            f"{path}: missing, truncated, or no checkpoint that loads with weights_only: "
            f"{shortened(error, 1000)}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise HeadFileError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def _unwrap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict inside {"model": ...} and the like."""
    for _ in range(_WRAPPED):  # not for ever: a mapping may hold itself
        inner = (state.get(key) for key in ("model", "state_dict", "model_state_dict"))
        found = next((one for one in inner if isinstance(one, Mapping)), None)
        if found is None:
            break
        state = found
    return state


def _rename(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Our names for theirs, without the tower's."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise HeadFileError(f"{source}: the key {quoted(key)} is no text")
        theirs = key
        while theirs.startswith(("module.", "_orig_mod.")):
            theirs = theirs.split(".", 1)[1]
        if theirs.startswith(_TOWER_PREFIXES):
            continue
        if not isinstance(value, Tensor):
            raise HeadFileError(f"{source}: {key} is a {type(value).__name__}, expected a tensor")
        ours = _translate(theirs, _NAMES)
        if ours is None:
            raise HeadFileError(
                f"{source}: unexpected key {quoted(key)}: a SPACE-CLIP head has no such part"
            )
        renamed[ours] = value
    return renamed


def _translate(key: str, names: Mapping[str, str]) -> str | None:
    """A key under its other name, or None where the table does not have it."""
    for old, new in names.items():
        pattern = re.escape(old).replace(r"\{i\}", r"(?P<i>\d+)") + r"(?=\.)"
        if match := re.match(pattern, key):
            return new.format(**match.groupdict()) + key[match.end() :]
    return None


def _infer_config(
    state: Mapping[str, Tensor],
    source: str,
    semantic_levels: Sequence[int],
    structural_levels: Sequence[int],
    context: str,
) -> HeadConfig:
    """Reads every size off the shapes."""

    def shape(key: str) -> torch.Size:
        if key not in state:
            theirs = _translate(key, {ours: theirs for theirs, ours in _NAMES.items()})
            raise HeadFileError(f"{source}: missing: {theirs}")
        if state[key].ndim < 2:
            raise HeadFileError(f"{source}: of another shape: {key} {tuple(state[key].shape)}")
        return state[key].shape

    def count(pattern: str) -> int:
        return len({m[1] for key in state if (m := re.match(pattern, key))})

    stages = count(r"fusion\.(\d+)\.")
    film = any(key.startswith("semantic.film.") for key in state)
    fields = {
        "width": shape("semantic.projections.0.weight")[1],
        "semantic_levels": tuple(semantic_levels),
        "structural_levels": tuple(structural_levels),
        "channels": tuple(shape(f"semantic.projections.{i}.weight")[0] for i in range(stages)),
        "film": film,
        "film_hidden": shape("semantic.film.0.mlp.0.weight")[0] if film else 256,
        "structural": any(key.startswith("structural.") for key in state),
        "auxiliary": count(r"auxiliary\.(\d+)\."),
        "context": context,
        "activation": "relu",
        "resize": "whole",  # as its authors train
    }
    return checked(HeadConfig, fields, source, HeadFileError, context=STORED)


def _check_complete(decoder: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Names what is missing as the authors do.

    Batch norm's step counters, which some exports leave out and no output needs, are filled in.
    """
    back = {ours: theirs for theirs, ours in _NAMES.items()}
    missing = []
    for key, value in decoder.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value, device="cpu"))
        elif key not in state:
            missing.append(_translate(key, back))
    if missing:
        raise HeadFileError(f"{source}: missing: {', '.join(map(str, missing[:5]))}")
