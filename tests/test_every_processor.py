"""Every processor class of the installed transformers is known, or refused with a reason."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers

from clipdepth_plugin.adapters.processors.behaviour import _holds, _views
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.errors import HostError

_ENDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "VideoProcessor")
_NAMES = sorted(
    name
    for name in dir(transformers)
    if name.endswith(_ENDS) and not name.startswith(("Base", "Auto", "TimmWrapper"))
)
SIZE = (90, 140)
# Of one view each, of hosts in our table.
KNOWN = (
    "AriaImageProcessor", "BridgeTowerImageProcessor", "DeiTImageProcessor",
    "DeepseekVLImageProcessor", "DeepseekVLHybridImageProcessor", "FlavaImageProcessor",
    "Glm46VImageProcessor", "Glm46VVideoProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor",
    "InternVLVideoProcessor", "JanusImageProcessor", "OwlViTImageProcessor", "Owlv2ImageProcessor",
    "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor",
    "Sapiens2ImageProcessor", "Tipsv2ImageProcessor",
)  # fmt: skip


@pytest.mark.parametrize("name", _NAMES)
def test_known_or_refused(name: str) -> None:  # noqa: PLR0911
    """Single views lie where the processor itself puts them; what is refused says why."""
    kind = getattr(transformers, name)
    if not inspect.isclass(kind):
        return
    if "image_processor" in inspect.signature(kind.__init__).parameters:
        return  # a whole processor of a model whose name ends in Video
    try:
        processor = kind()
    except (TypeError, ValueError, AttributeError):
        return  # it has no default options
    try:
        read = from_processor(processor)
    except HostError as error:
        assert name not in KNOWN, error  # noqa: PT017
        assert f"{name.removesuffix('Pil').removesuffix('Fast')}: cannot read " in str(error)  # noqa: PT017
        return
    if not read.rules:
        assert name not in KNOWN, read.unknown
        assert read.unknown
        return
    rule = read.rules[-1]
    views = rule.views(SIZE).views
    if len(views) != 1 or len(read.rules) > 1 or "do_" in read.unknown:
        return  # tiles: tests/test_view_rules.py
    try:
        views_V3HW = _views(processor, SIZE)
    except HostError:
        return  # NaFlex and others in test_view_rules.py
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (read.mean, read.std))
    for view_3HW in views_V3HW.float():
        assert tuple(view_3HW.shape[1:]) == views[0].view_size
        assert _holds(view_3HW * std + mean, views[0])
