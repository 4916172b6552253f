"""``hf:ORG/NAME``, ``hf:FOLDER``: depth models of transformers, AutoModelForDepthEstimation.

Pictures go through the model's own image processor and its ``post_process_depth_estimation``, so
that a label is what the library itself gives at the picture's size. ``?units=metres`` (or
``?units=inverse depth``) behind the name says the units of a model whose config does not.

Axes: B pictures, H W a picture's size.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.loading.folder import CONFIG_FILE, check_folder
from clipdepth_plugin.adapters.loading.registry import require_safetensors
from clipdepth_plugin.arguments import parse_camera
from clipdepth_plugin.data.hf_files import checked_place
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.files.documents import parse_yaml
from clipdepth_plugin.files.paths import is_folder, read_text
from clipdepth_plugin.labelling.checked import CheckedSource, Estimate
from clipdepth_plugin.labelling.source import DepthSource, Picture, SourceCard, register_source
from clipdepth_plugin.labelling.sources.hf_units import ModelTraits, model_traits
from clipdepth_plugin.labelling.versions import files_version

logger = logging.getLogger(__name__)

_CARD_FILE = "README.md"
_PROBE = np.full((64, 64, 3), 128, np.uint8)


@register_source("hf")
def open_hf(text: str, *, device: str, dtype: str | None) -> DepthSource:
    """A model from its folder or the hub: safetensors alone, no code from its repository."""
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    name, said = _parted(text)
    pinned: dict[str, Any] = {"trust_remote_code": False}
    if is_folder(Path(name)):
        check_folder(Path(name))
        require_safetensors(name, "model.safetensors", "model.safetensors.index.json")
        version = _folder_version(Path(name))
        card_file: Path | None = Path(name, _CARD_FILE)
    else:
        version = Path(hf_hub_download(name, CONFIG_FILE)).parent.name  # snapshots/<commit>
        pinned["revision"] = version  # of all files, though somebody pushes meanwhile
        card_file = _card_of(name, version)
    config = AutoConfig.from_pretrained(name, **pinned)
    traits, units = model_traits(config, said, name)
    processor = AutoImageProcessor.from_pretrained(name, **pinned)
    if not hasattr(processor, "post_process_depth_estimation"):
        raise SourceError(
            f"hf:{name}: its image processor, {type(processor).__name__}, does not post-process "
            "depth; save the model's own beside it"
        )
    model, report = AutoModelForDepthEstimation.from_pretrained(
        name,
        dtype=dtype or "auto",
        use_safetensors=True,
        output_loading_info=True,
        **pinned,
    )
    card = SourceCard(
        source=f"hf:{text}",
        units=units,
        version=version,
        licence=_licence(card_file),
        max_depth=traits.max_depth,
        reads_focal=traits.reads_field_of_view,
    )
    source = HfSource(card, model.to(device).eval(), processor, traits)
    _check_complete(source, model, sorted(report["missing_keys"]))
    return source


def _parted(text: str) -> tuple[str, str | None]:
    """The model's name, and the units behind it."""
    name, mark, option = text.partition("?")
    said = option.removeprefix("units=")
    if mark and said == option:
        raise SourceError(f"hf:{text}: ?{option}: expected ?units=metres or '?units=inverse depth'")
    checked_place(name)
    return name, said if mark else None


class HfSource(CheckedSource):
    """A depth model of transformers and its image processor."""

    def __init__(self, card: SourceCard, model: Any, processor: Any, traits: ModelTraits) -> None:
        """Keeps them; the model is in evaluation mode and on its device."""
        self.card = card
        self.one_by_one = traits.one_by_one
        self._model, self._processor = model, processor
        self._reads_field_of_view = traits.reads_field_of_view
        taken = inspect.signature(processor.post_process_depth_estimation).parameters
        self._sizes = "source_sizes" if "source_sizes" in taken else "target_sizes"

    def run(self, pictures: Sequence[Picture]) -> list[Estimate]:
        """See ``CheckedSource.run``."""
        images = [Image.fromarray(picture.image_HW3) for picture in pictures]
        sizes = [(image.height, image.width) for image in images]
        inputs = self._processor(images=images, return_tensors="pt")
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._model.device, self._model.dtype))
            # Resized and inverted in float32, whatever the model computes in.
            outputs.predicted_depth = outputs.predicted_depth.float()
            if self._reads_field_of_view:
                outputs.field_of_view = _fields_of_view(pictures, outputs)
            posted = self._processor.post_process_depth_estimation(outputs, **{self._sizes: sizes})
        # The library's squeeze() takes a side of one pixel away, too.
        maps = [one["predicted_depth"].reshape(s) for one, s in zip(posted, sizes, strict=True)]
        return [self._estimate(depth_HW) for depth_HW in maps]

    def _estimate(self, depth_HW: Tensor) -> Estimate:
        """Of metres at or below 0 (of ReLUs, and of bicubic resizing beside edges) nothing."""
        return Estimate(depth_HW, ~(depth_HW <= 0) if self.card.units == "metres" else None)


def _fields_of_view(pictures: Sequence[Picture], outputs: Any) -> Tensor:
    """(B,) degrees along the width: by the focal length where it is known, else the model's own.

    DepthPro's metres are its canonical depth times focal length over width (arXiv 2410.02073,
    section 3.1), so that a known focal length takes the place of the estimated one.
    """
    own_B = outputs.field_of_view
    views = []
    for index, picture in enumerate(pictures):
        if picture.intrinsics is not None:
            focal, *_ = parse_camera(picture.intrinsics, picture.name)
            width = picture.image_HW3.shape[1]
            views.append(math.degrees(2 * math.atan(width / 2 / focal)))
        elif own_B is not None:
            views.append(float(own_B[index]))
        else:
            raise SourceError(
                f"{picture.name}: this model estimates no field of view (use_fov_model is false), "
                "so it gives metres only where the focal length is known; give one"
            )
    return torch.tensor(views, device=outputs.predicted_depth.device)


def _check_complete(source: HfSource, model: Any, missing: list[str]) -> None:
    """Refuses weights that lack a tensor that depth depends on; some checkpoints lack others.

    Those of MiDaS and DINOv2 have no first residual unit in the deepest fusion layer, which is
    never called. What is missing is made NaN, and a picture shows whether it matters.
    """
    if not missing:
        return
    state = model.state_dict()
    for key in missing:
        if state[key].is_floating_point():
            state[key].fill_(torch.nan)
    estimates_view = getattr(model.config, "use_fov_model", True)
    camera = None if estimates_view else (64.0, 64.0, 31.5, 31.5)
    try:
        source.label([Picture("a grey picture", _PROBE, camera)])
    except SourceError as error:
        raise SourceError(
            f"{source.card.source}: the weights lack {len(missing)} tensors, e.g. {missing[0]}; "
            "they are incomplete, or those of another model"
        ) from error


def _folder_version(folder: Path) -> str:
    endings = (".safetensors", ".json")
    return files_version(path for path in folder.iterdir() if path.name.endswith(endings))


def _card_of(name: str, commit: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _CARD_FILE, revision=commit))
    except Exception as error:  # noqa: BLE001 (there is none, or no network any more)
        logger.info("%s: no model card (%s)", name, error)
        return None


def _licence(card: Path | None) -> str | None:
    """As the model card's front matter has it; None where there is none."""
    if card is None or not card.is_file():
        return None
    try:
        lines = iter(read_text(card, SourceError).splitlines())
        if next(lines, "") != "---":
            return None
        said = parse_yaml("\n".join(takewhile("---".__ne__, lines)), str(card), SourceError)
    except SourceError as error:
        logger.warning("%s; the licence is not known", error)
        return None
    if not isinstance(said, dict):
        return None
    parts = [said.get(key) for key in ("license", "license_name", "license_link")]
    return ", ".join(str(part) for part in parts if part) or None
