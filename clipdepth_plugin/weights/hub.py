"""Saving and loading heads: folders of config.json, model.safetensors and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import save
from torch import nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HeadFileError
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.files.documents import read_json
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.settings import STORED
from clipdepth_plugin.weights.model_card import is_unedited, model_card_text
from clipdepth_plugin.weights.tensors import (
    build_checked,
    load_weights,
    read_safetensors,
    read_shapes,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_HUB_OPTIONS = {"revision", "token", "cache_dir", "local_files_only", "force_download"}


class HubMixin(
    nn.Module,
    ModelHubMixin,
    library_name="clipdepth-plugin",
    pipeline_tag="depth-estimation",
    paper_url="https://arxiv.org/abs/2601.17657",
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for ``DepthHead``."""

    config: HeadConfig

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str = "cpu", **options: Any
    ) -> Self:
        """Loads a head from a folder or a hub id; float32, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder that ``save_pretrained`` wrote, or a hub id.
            device: Where the weights go.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
                ``force_download``, as everywhere in huggingface_hub.

        Raises:
            HeadFileError: There is no such head, or a file of it is missing, truncated or
                does not fit its config.
        """
        source = str(pretrained_model_name_or_path)
        unknown = sorted(options.keys() - _HUB_OPTIONS)
        if unknown:
            raise HeadFileError(f"from_pretrained does not take {', '.join(unknown)}")
        config = _read_config(_fetch(source, CONFIG_FILE, options), source)
        weights = _fetch(source, WEIGHTS_FILE, options)
        head = build_checked(lambda: cls(config), read_shapes(weights), weights)
        load_weights(head, read_safetensors(weights), weights)
        return head.to(device).eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 (the mixin's)
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes config.json, model.safetensors and a model card into a folder.

        Everything is written into a hidden folder first and then moved file by file: a save that
        fails while writing leaves what was there. A model card that an earlier save wrote is
        replaced, an edited one is kept.

        Args:
            save_directory: The folder; made where it is missing.
            config: Not to be given: a head is saved with its own config.
            repo_id: With ``push_to_hub``; the folder's name by default.
            push_to_hub: Upload afterwards.
            model_card_kwargs: Ignored: the card is made from the config.
            push_to_hub_kwargs: Passed on to ``push_to_hub``.

        Returns:
            The commit's address with ``push_to_hub``, else None.

        Raises:
            HeadFileError: The folder can't be written.
        """
        folder = Path(save_directory)
        if config is not None:
            raise HeadFileError("config: a head is saved with its own config; leave it out")
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        with new_files(folder, HeadFileError) as temporary:
            # Not save_file: it makes files that only their owner may read.
            (temporary / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
            text = self.config.model_dump_json(indent=2) + "\n"
            (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")
            if _may_replace(folder / CARD_FILE):
                card = model_card_text(self.config)
                (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)
        return None


def _fetch(source: str, file: str, options: dict[str, Any]) -> Path:
    """A file of a head: in its folder, or downloaded from the hub."""
    try:
        if Path(source).is_dir():
            return Path(source) / file
        return Path(hf_hub_download(source, file, **options))
    except HFValidationError as error:
        raise HeadFileError(
            f"{source!r} is neither a folder that exists nor a hub id: {error}"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise HeadFileError(f"{source}: {file} could not be downloaded: {error}") from error


def _read_config(path: Path, source: str) -> HeadConfig:
    """The config of a saved head; a HeadFileError where it is missing or not one."""
    if not path.is_file():
        raise HeadFileError(f"{source}: no {CONFIG_FILE} there: is this a head's folder?")
    config = _with_former_defaults(read_json(path, HeadFileError))
    what = f"{source}: {CONFIG_FILE} is not the config of a depth head"
    return checked(HeadConfig, config, what, HeadFileError, context=STORED)


def _with_former_defaults(config: Any) -> Any:
    """A saved config, with the fields that it lacks at their defaults, not at its preset's values.

    A head is saved with all fields, ``provenance`` among them: one that is missing is newer.
    """
    if not isinstance(config, dict) or "provenance" not in config:  # written by hand
        return config
    newer = {
        name: field.get_default(call_default_factory=True)
        for name, field in HeadConfig.model_fields.items()
        if not field.is_required()
    }
    return {**newer, **config}


def _may_replace(card: Path) -> bool:
    """Whether there is no card, or an unedited one that a save wrote."""
    return not card.exists() or is_unedited(card.read_text(encoding="utf-8", errors="replace"))
