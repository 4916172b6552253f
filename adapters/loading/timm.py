"""Hosts of timm: names that timm.create_model takes, and folders it saved."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from clipdepth_plugin.adapters.loading.folder import require_safetensors
from clipdepth_plugin.adapters.loading.registry import Library, Loaded, register
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    pass


def load_named(name: str, random_weights: bool) -> Loaded:
    """Loads ``vit_small_patch16_224.augreg_in21k`` or ``hf-hub:org/name``."""
    import timm

    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise HostError(
            f"host 'timm:{name}': timm knows no such model"
            + (f"; did you mean {', '.join(close)}?" if close else "; see timm.list_models()")
        )
    return Loaded(timm.create_model(name, pretrained=not random_weights))


def load_folder(name: str, random_weights: bool) -> Loaded:
    """Loads a folder that ``timm.models.save_for_hf(safe_serialization=True)`` wrote."""
    import timm

    if not random_weights:
        require_safetensors(Path(name), "model.safetensors")
    return Loaded(timm.create_model(f"local-dir:{name}", pretrained=not random_weights))


register("timm", Library(load_named, "timm:NAME", load_folder, folder_key="architecture"))
