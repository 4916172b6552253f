"""Hosts of timm: names that timm.create_model takes, and folders it saved."""

from __future__ import annotations

from clipdepth_plugin.adapters.loading import registry
from clipdepth_plugin.errors import HostError


def load_named(name: str, random_weights: bool) -> registry.Loaded:
    """Loads ``vit_small_patch16_224.augreg_in21k`` or ``hf-hub:org/name``."""
    import timm

    scheme, colon, _ = name.partition(":")
    if colon and scheme != "hf-hub":
        raise HostError(f"host 'timm:{name}': expected a name, hf-hub:ORG/NAME or a folder")
    if not colon and not timm.is_model(name.partition(".")[0]):
        hint = registry.did_you_mean(name, timm.list_models(), "timm.list_models()")
        raise HostError(f"host 'timm:{name}': timm knows no such model; {hint}")
    return registry.Loaded(timm.create_model(name, pretrained=not random_weights))


def load_folder(name: str, random_weights: bool) -> registry.Loaded:
    """Loads a folder that ``timm.models.save_for_hf(safe_serialization=True)`` wrote."""
    import timm

    if not random_weights:
        registry.require_safetensors(name, "model.safetensors")
    return registry.Loaded(timm.create_model(f"local-dir:{name}", pretrained=not random_weights))


registry.register(
    "timm", registry.Library(load_named, "timm:NAME", load_folder, folder_key="architecture")
)
