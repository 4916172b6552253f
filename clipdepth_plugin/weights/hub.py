"""Saving and loading heads the way the ecosystem does: huggingface_hub's mixin, safetensors only.

A head is a folder, local or on the hub: config.json, model.safetensors, README.md (model card).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self, cast

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HeadFileError
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.weights.model_card import is_unedited, model_card_text

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"


class _Head(Protocol):
    """What is saved."""

    config: HeadConfig

    def state_dict(self) -> dict[str, Tensor]: ...


class HubMixin(
    ModelHubMixin,
    library_name="clipdepth-plugin",
    pipeline_tag="depth-estimation",
    paper_url="https://arxiv.org/abs/2601.17657",
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for ``DepthHead``."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a head from a folder or a hub id; float32, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder that ``save_pretrained`` wrote, or a hub id.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
                ``force_download``, as everywhere in huggingface_hub; ``device``.

        Raises:
            HeadFileError: There is no such head, or a file of it is missing, truncated or
                does not fit its config.
        """
        source = str(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except HFValidationError as error:
            raise HeadFileError(
                f"{source!r} is neither a folder that exists nor a hub id: {error}"
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise HeadFileError(f"{source}: {CONFIG_FILE} is not valid JSON: {error}") from error
        except AttributeError as error:
            if error.name != "items" or isinstance(error.obj, dict):
                raise
            # The hub client takes whatever JSON it finds for an object.
            raise HeadFileError(
                f"{source}: {CONFIG_FILE} holds {json.dumps(error.obj)[:80]}, not a JSON object: "
                "it is not the config of a depth head"
            ) from error
        except (OSError, HfHubHTTPError) as error:
            raise HeadFileError(
                f"{source}: the head could not be read or downloaded: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        device: str = "cpu",
        **model_kwargs: Any,
    ) -> Self:
        if model_kwargs:
            raise HeadFileError(f"from_pretrained does not take {', '.join(sorted(model_kwargs))}")
        if config is None:
            raise HeadFileError(f"{model_id}: no {CONFIG_FILE} there; is this a head's folder?")
        try:
            head_config = HeadConfig.model_validate(_as_it_was(config))
        except ValidationError as error:
            raise HeadFileError(
                f"{model_id}: {CONFIG_FILE} is not the config of a depth head: {error}"
            ) from error
        weights = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            weights = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        head = cast("Callable[[HeadConfig], nn.Module]", cls)(head_config)
        load_weights(head, read_safetensors(weights), weights)
        return cast("Self", head.to(device).eval())

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes config.json, model.safetensors and a model card into a folder.

        Everything is written into a hidden folder inside first, so a save that fails while
        writing leaves what was there, or no folder where there was none. The files are then
        moved to their places one by one, each whole: weights, config, card. A save that is cut
        off between two of these moves leaves the new weights beside the old config.

        A model card that is there is replaced where it is as an earlier save wrote it, and kept
        where it was edited or is someone else's.

        Args:
            save_directory: The folder; made where it is missing.
            config: Not to be given: a head is saved with its own config.
            repo_id: With ``push_to_hub``; the folder's name by default.
            push_to_hub: Upload afterwards.
            model_card_kwargs: Passed on to ``generate_model_card``.
            push_to_hub_kwargs: Passed on to ``push_to_hub``.

        Returns:
            The commit's address with ``push_to_hub``, else None.

        Raises:
            HeadFileError: The folder can't be written.
        """
        folder = Path(save_directory)
        if config is not None:
            raise HeadFileError("config: a head is saved with its own config; leave it out")
        with new_files(folder, HeadFileError) as temporary:
            super().save_pretrained(temporary, model_card_kwargs=model_card_kwargs)
            if not _may_replace(folder / CARD_FILE):
                (temporary / CARD_FILE).unlink()
        if push_to_hub:
            return self.push_to_hub(
                repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
            )
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        head = cast("_Head", self)
        state = {name: value.detach().contiguous() for name, value in head.state_dict().items()}
        # Not save_file: it makes files that only their owner may read.
        (save_directory / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
        config = head.config.model_dump_json(indent=2)
        (save_directory / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    def generate_model_card(self, *_args: Any, **_kwargs: Any) -> ModelCard:
        """The model card: tower, levels, context, units, range, data."""
        return ModelCard(model_card_text(cast("_Head", self).config))


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """A saved config, with what it lacks as it was when it was saved.

    A head is saved with every field that there is, ``provenance`` among them: a field that such a
    config lacks is newer, and its default, not what a preset gives today, is what there was before.
    """
    if "provenance" not in config:  # written by hand
        return config
    newer = {
        name: field.get_default(call_default_factory=True)
        for name, field in HeadConfig.model_fields.items()
        if not field.is_required()
    }
    return {**newer, **config}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file.

    Raises:
        HeadFileError: Missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise HeadFileError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise HeadFileError(
            f"{path}: truncated or not a safetensors file ({error}); get or save it again"
        ) from error


def load_weights(head: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Loads a state dict into a head, every tensor checked before any is copied.

    Raises:
        HeadFileError: A key is missing or odd, or its tensor is of another shape, no floats where
            the head has floats, or not finite; names them.
    """
    own = head.state_dict()
    missing, odd = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} (expected {tuple(own[name].shape)})"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    both = sorted(name for name in own.keys() & state.keys() if own[name].is_floating_point())
    whole = [f"{name} {state[name].dtype}" for name in both if not state[name].is_floating_point()]
    wild = [] if whole else [name for name in both if not bool(state[name].isfinite().all())]
    problems = {
        "missing": missing,
        "odd": odd,
        "of another shape": sorted(shapes),
        "not of floats": whole,
        "not finite (NaN or infinite)": wild,
    }
    for what, names in problems.items():
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            raise HeadFileError(f"{source}: {what}: {shown}")
    head.load_state_dict(state)


def _may_replace(card: Path) -> bool:
    """Whether there is no card, or one of ours that nobody edited."""
    try:
        return is_unedited(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except UnicodeDecodeError:
        return False
