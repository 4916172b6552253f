"""Reads how a Hugging Face image (or video) processor makes views of an image.

The reader is chosen by class name (``registry``). Where none knows all options, what the processor
makes of a picture of coordinates tells (``behaviour``); what that leaves open is unknown, never
guessed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, get_args

from clipdepth_plugin.adapters.preprocessing import (
    Interpolation,
    Preprocessing,
    Triple,
    triple,
)
from clipdepth_plugin.adapters.processors.behaviour import contradicts, read_by_behaviour
from clipdepth_plugin.adapters.processors.registry import Read, reader_of
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.tiling import ViewRule

_FILTERS: dict[int, Interpolation] = dict(enumerate(get_args(Interpolation)))
_TRIED = ((150, 230), (4000, 3000))  # sizes of pictures that every rule must know views of
# What is read, or does not move pixels.
_KNOWN = frozenset(
    (  # noqa: SIM905 (forty lines otherwise)
        "image_processor_type video_processor_type feature_extractor_type processor_class auto_map "
        "image_mean image_std do_rescale rescale_factor do_normalize do_convert_rgb size crop_size "
        "pad_size do_resize do_center_crop do_pad default_to_square resample do_sample_frames fps "
        "num_frames return_metadata image_seq_length image_size image_num_channels "
        "num_additional_image_tokens do_reduce_labels return_row_col_info return_tensors "
        "data_format input_data_format device disable_grouping model_input_names "
        "_valid_processor_keys"
    ).split()
)


def from_processor(processor: Any) -> Preprocessing:
    """Reads an image or video processor, a processor that has them, or its dict."""
    inner = getattr(processor, "image_processor", processor)
    given = _fields(inner)
    name = str(
        given.get("image_processor_type")
        or given.get("video_processor_type")
        or type(inner).__name__
    )
    plain = "do_normalize" in given and not given["do_normalize"]
    missing = [key for key in ("image_mean", "image_std") if given.get(key) is None and not plain]
    read = _read(name, given, processor)
    if not missing and (isinstance(read, str) or read.unknown):
        read = _as_it_does(name, given, inner, read)
    if missing or isinstance(read, str):
        missing += [read] if isinstance(read, str) else []
        raise HostError(f"{name}: cannot read {', '.join(missing)} from this image processor")
    resample = given.get("resample")
    interpolation = _FILTERS.get(3 if resample is None else int(resample))
    if interpolation is None:
        raise HostError(f"{name}: resample={resample!r} is none of Pillow's filters")
    found = _preprocessing(name, given, read, interpolation)
    if found.resize and not read.view_rules and contradicts(name, inner, found):
        seen = read_by_behaviour(name, inner, found)
        if isinstance(seen, str):
            seen = Read(
                read.size, unknown=f"{name}: its settings say otherwise than it does ({seen})"
            )
        found = _preprocessing(name, given, seen, interpolation)
    video = getattr(processor, "video_processor", None)
    if video is None or found.unknown:
        return found
    return dataclasses.replace(found, view_rules=(*found.view_rules, *_frames(video, found)))


def _preprocessing(
    name: str, given: Mapping[str, Any], read: Read, interpolation: Interpolation
) -> Preprocessing:
    return Preprocessing(
        *(read.normalisation or _normalisation(name, given)),
        read.size,
        read.resize,
        read.resize_to,
        interpolation,
        "down",
        read.view_rules,
        read.unknown,
    )


def _as_it_does(name: str, given: Mapping[str, Any], inner: Any, read: Read | str) -> Read | str:
    """Where its settings do not say how a processor makes views: what it does with a picture."""
    seen = read_by_behaviour(
        name, inner, Preprocessing(*_normalisation(name, given), (1, 1), unknown="not yet read")
    )
    if not isinstance(seen, str):
        return seen
    if isinstance(read, str):
        return f"{read} ({seen})"
    return dataclasses.replace(read, unknown=f"{read.unknown} ({seen})")


def _normalisation(name: str, given: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """(mean, std) for pictures of 0..1, whatever the processor itself brings them to."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if given.get("do_normalize", True):
        mean, std = triple(given["image_mean"]), triple(given["image_std"])
    factor = given.get("rescale_factor")
    white = 255.0 * (1 / 255 if factor is None else float(factor))
    if given.get("do_rescale") is False:
        white = 255.0
    if not white > 0:
        raise HostError(f"{name}: rescale_factor={factor!r} leaves no picture")
    if math.isclose(white, 1.0, rel_tol=1e-6):  # 1 / 255, as it was written down
        return mean, std
    return triple([x / white for x in mean]), triple([x / white for x in std])


def _frames(video: Any, images: Preprocessing) -> list[ViewRule]:
    """How a video processor makes views of frames, where it has another rule."""
    try:
        rules = from_processor(video).rules
    except HostError:
        return []  # A pass of frames fits none of the rules then, and is refused.
    return [rule for rule in rules if rule not in images.rules]


def _fields(processor: Any) -> dict[str, Any]:
    """A processor's settings as plain dicts and numbers; newer releases have classes for sizes."""
    if not isinstance(processor, Mapping) and not hasattr(processor, "to_dict"):
        raise HostError(
            f"the processor is {type(processor).__name__}, expected the host's image processor "
            "itself (AutoImageProcessor.from_pretrained(...)), its dict or a Preprocessing"
        )
    try:
        given = processor if isinstance(processor, Mapping) else processor.to_dict()
    except (TypeError, ValueError, OSError) as error:  # a font that is missing ...
        raise HostError(f"{type(processor).__name__} cannot say its settings: {error}") from error
    # Settings that are None are left out, but these are off then.
    off = [key for key in ("do_rescale", "do_normalize") if getattr(processor, key, True) is None]
    return {key: _plain(value) for key, value in given.items()} | dict.fromkeys(off, False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: one for key, one in value.items() if one is not None}
    return value


def _read(name: str, given: Mapping[str, Any], processor: Any) -> Read | str:
    """What the processor says; the name of what is missing."""
    registered = reader_of(name)
    try:
        read = registered.read(given, processor)
        for rule, size in itertools.product(read.view_rules, _TRIED):
            rule.views(size)
    except KeyError as error:
        return str(error.args[0])
    except HostError as error:
        raise HostError(f"{name}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise HostError(f"{name}: its settings make no views of a picture: {error}") from error
    if given.get("do_resize") is False:
        return _unknown(read, f"{name}: do_resize=False")
    options = [
        f"{key}={value!r}"
        for key, value in given.items()
        if value not in (None, False, [], {}) and key not in _KNOWN | registered.options
    ]
    return _unknown(read, f"{name}: {', '.join(options)}") if options else read


def _unknown(read: Read, why: str) -> Read:
    return Read(read.size, unknown=read.unknown or why)
