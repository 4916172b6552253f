"""Hosts of open_clip: model and tag, hub ids, and folders."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clipdepth_plugin.adapters.loading import registry
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "open_clip_config.json"
_HUB = "hf-hub:"


def load_named(name: str, random_weights: bool) -> registry.Loaded:
    """Loads ``ViT-B-16/openai`` (model/tag) or ``hf-hub:org/name``."""
    import open_clip

    if name.startswith(_HUB):
        if random_weights:
            return registry.Loaded(_from_hub_config(name.removeprefix(_HUB)))
        return registry.Loaded(open_clip.create_model(name, require_pretrained=True))
    model, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
    _check_name(model, tag, tag_needed=not random_weights)
    # Tags carry what their weights were trained with; open_clip leaves the activation to the user.
    trained = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    known = {key: trained[key] for key in ("mean", "std", "interpolation") if key in trained}
    host = open_clip.create_model(
        model,
        pretrained=None if random_weights else tag,
        force_quick_gelu=bool(trained.get("quick_gelu", False)),
        force_preprocess_cfg=known,
        pretrained_text=False,
        require_pretrained=not random_weights,
    )
    return registry.Loaded(host)


def load_folder(name: str, random_weights: bool) -> registry.Loaded:
    """Loads a folder with an open_clip_config.json; weights from safetensors only."""
    if not random_weights:
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
        registry.require_safetensors(name, *names)
    return registry.Loaded(_from_folder(name, random_weights=random_weights))


def _from_folder(folder: str, *, random_weights: bool) -> nn.Module:
    import open_clip

    host: nn.Module = open_clip.create_model(
        f"local-dir:{folder}",
        load_weights=not random_weights,
        pretrained_text=False,
        require_pretrained=not random_weights,
    )
    return host


def _from_hub_config(model_id: str) -> nn.Module:
    """Builds a hub model from its config alone; open_clip itself would fetch the weights too."""
    from huggingface_hub import hf_hub_download

    config = Path(hf_hub_download(model_id, CONFIG_FILE))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG_FILE).write_bytes(config.read_bytes())
        return _from_folder(folder, random_weights=True)


def _check_name(model: str, tag: str, *, tag_needed: bool) -> None:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        hint = registry.did_you_mean(model, known, "open_clip.list_models()")
        raise HostError(f"host 'open_clip:{model}': open_clip knows no such model; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if (tag_needed or tag) and not open_clip.is_pretrained_cfg(model, tag):
        raise HostError(
            f"host 'open_clip:{model}': "
            + (f"no weights are tagged {tag!r}" if tag else "a tag must say which weights")
            + f"; known are {', '.join(tags) or 'none'}. Write open_clip:{model}/TAG"
        )


registry.register(
    "open_clip",
    registry.Library(load_named, "open_clip:MODEL/TAG", load_folder, folder_file=CONFIG_FILE),
)
