"""What is checked of a host's folder before its library reads it: it reads nothing outside.

The libraries follow whatever an index, a config or a symbolic link names, pickles among it.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.files.documents import MIB, read_json

CONFIG_FILE = "config.json"

_READ = (".safetensors", ".json")
_CONFIG_BYTES, _INDEX_BYTES = 16 * MIB, 64 * MIB


def check_folder(folder: Path) -> None:
    """Checks that all weights lie in the folder and are no pickles.

    Links within a cache of the hub (``snapshots/<commit>`` to ``blobs``) are fine.

    Raises:
        HostError: An index or the config names another file, a link leaves the folder, or an
            adapter stands for the weights.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(_READ))
    except OSError as error:
        raise HostError(f"host {folder}: can't be read ({error.strerror})") from error
    for file in files:
        _check_inside(folder, file.name, folder)
        if file.name.endswith(".index.json"):
            for name in sorted(_shards(file)):
                _check_weights(folder, name, file)
    if (folder / "adapter_config.json").exists():
        raise HostError(
            f"host {folder}: holds an adapter (adapter_config.json), whose base lies elsewhere; "
            "merge it into the model and save that"
        )
    if (folder / CONFIG_FILE).is_file():
        named = read_config(folder / CONFIG_FILE).get("transformers_weights")
        if named is not None:
            _check_weights(folder, str(named).removesuffix(".index.json"), folder / CONFIG_FILE)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; a HostError where it is none."""
    config = read_json(path, HostError, limit=_CONFIG_BYTES)  # with a name for each label
    if not isinstance(config, dict):
        raise HostError(f"host {path}: expected a JSON object, got a {type(config).__name__}")
    return config


def _shards(index: Path) -> set[Any]:
    tree = read_json(index, HostError, limit=_INDEX_BYTES)
    names = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
        raise HostError(f"host {index}: expected a weight_map of tensors and their files")
    return set(names.values())


def _check_weights(folder: Path, name: str, where: Path) -> None:
    if not name.endswith(".safetensors"):
        raise HostError(
            f"host {where}: names {quoted(name)}: weights are read from safetensors only; "
            "other files may be pickles, which run code. Save the model with safetensors"
        )
    _check_inside(folder, name, where)


def _check_inside(folder: Path, name: str, where: Path) -> None:
    """Checks that a file lies in the folder, links followed."""
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parents[1] / "blobs")
    # On Windows ".." may stand between other slashes, too.
    plain = not Path(name).is_absolute() and ".." not in PureWindowsPath(name).parts
    try:
        inside = plain and any((root / name).resolve().is_relative_to(one) for one in roots)
    except (OSError, RuntimeError, ValueError):  # a loop of links; a name that can't be
        inside = False
    if not inside:
        raise HostError(f"host {where}: {quoted(name)} lies outside of the folder; copy it in")
