"""Hosts of transformers: AutoModel on a hub id or a local folder."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from clipdepth_plugin.adapters.loading.registry import (
    Library,
    Loaded,
    register,
    require_safetensors,
)
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.towers import find_towers
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def load_named(name: str, random_weights: bool) -> Loaded:
    """Loads a hub id, e.g. ``google/siglip-base-patch16-224``."""
    return _load(name, random_weights, None)


def load_folder(name: str, random_weights: bool) -> Loaded:
    """Loads a folder that ``save_pretrained`` wrote; weights from safetensors only."""
    if not random_weights:
        require_safetensors(name, "model.safetensors", "model.safetensors.index.json")
    return _load(name, random_weights, True)


def _load(name: str, random_weights: bool, use_safetensors: bool | None) -> Loaded:
    from transformers import AutoConfig, AutoModel

    if random_weights:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_config(config, trust_remote_code=False)
    else:
        model, report = AutoModel.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=use_safetensors,
            output_loading_info=True,
        )
        _check_complete(name, model, sorted(report["missing_keys"]))
    return Loaded(
        model, _read_preprocessing(name), load_processor=functools.partial(_load_processor, name)
    )


def _check_complete(name: str, model: nn.Module, missing: list[str]) -> None:
    """Refuses a host whose tower kept random weights; a new pooler or task head may be missing."""
    if not missing:
        return
    blocks = tuple(f"{tower.blocks_path}." for tower in find_towers(model))
    in_tower = [key for key in missing if key.startswith(blocks)]
    if in_tower:
        raise HostError(
            f"host {name}: the weights lack {len(in_tower)} tensors of the vision tower, e.g. "
            f"{in_tower[0]}; they are incomplete, or those of another model"
        )
    logger.warning("host %s: no weights for %s; they are random", name, ", ".join(missing))


def _read_preprocessing(name: str) -> Preprocessing | None:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        return from_processor(processor)
    except (OSError, HostError) as error:
        # Not an error yet: the tower's own config may say it, and ``inspect`` needs none of it.
        logger.info("host %s has no image processor that can be read (%s)", name, error)
        return None


def _load_processor(name: str) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(name, trust_remote_code=False)


register("hf", Library(load_named, "hf:ORG/NAME", load_folder, folder_key="model_type"))
