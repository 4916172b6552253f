"""How pictures are made a tower's input: as the host does it, or as the head was trained."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import nn

from clipdepth_plugin.adapters.named_pictures import is_pipeline
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.processors.lerobot import from_policy
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.arguments import Size, parse_size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HostError

logger = logging.getLogger(__name__)


def framing(
    config: HeadConfig, preprocessing: Preprocessing, input_size: Size | None = None
) -> Preprocessing:
    """How pictures are made a tower's input for a head.

    By one of the host's own rules, so that the head sees what it sees in the host's own forward:
    that for one view of fixed size, else its first (tiles; a size of each picture's own). Squashed
    whole where none is known, where the rule does not follow to another input size, or where the
    head was trained so.
    """
    if input_size is not None:
        input_size = parse_size(input_size, "input_size")
    size = input_size or config.input_size or preprocessing.size
    if size != preprocessing.size:
        preprocessing = preprocessing.at_size(size)
    if config.resize == "whole" or not preprocessing.rules:
        return preprocessing.whole()
    rules = () if preprocessing.resize is not None else (preprocessing.shown_rule,)
    return replace(preprocessing, view_rules=rules)


def known_preprocessing(tower: Tower, preprocessing: Preprocessing | None) -> Preprocessing:
    """What is given, or what the tower says of itself; for its patches."""
    known = preprocessing or tower.preprocessing
    if known is None:
        raise HostError(
            f"it is not known how pictures for {tower} are normalised: give a Preprocessing (mean, "
            "std, size), or a host's folder that has a preprocessor_config.json"
        )
    return known.for_patches(tower.patch_size)


def host_preprocessing(host: nn.Module, tower: Tower, processor: Any) -> Preprocessing | None:
    """How a host prepares its pictures, from its processor or from the host itself."""
    own = from_policy(host, tower.path)
    if isinstance(processor, Preprocessing):
        return processor
    if processor is None or is_pipeline(processor):
        return own or tower.preprocessing
    if own is not None:
        raise HostError(
            "processor: this host resizes and pads its own pictures, as its config says, not as "
            "its language model's processor would: leave processor out, or give a Preprocessing"
        )
    return from_processor(processor)


def warn_of_other_views(config: HeadConfig, preprocessing: Preprocessing | None) -> None:
    """Warns where a host makes views otherwise than those that a head was trained on."""
    if preprocessing is None or not preprocessing.rules:
        return
    trained = framing(config, preprocessing)
    size_differs = config.input_size not in (None, preprocessing.size)
    rule_differs = config.resize is not None and preprocessing.rules[0] != trained.rules[0]
    if not (size_differs or rule_differs):
        return
    how = trained.rules[0].label if config.resize else "shown"
    hosts = " or ".join(dict.fromkeys(rule.label for rule in preprocessing.rules))
    logger.warning(
        "the head was trained on pictures %s to %d x %d; this host's are %s, at %d x %d: expect "
        "larger errors than the head's own figures. Train a head on this host (clipdepth train, "
        "resize: host), or show pictures as in training: "
        "clipdepth_plugin.plugin.pictures.PictureDepth(plugin)(pictures)",
        how,
        *trained.size,
        hosts,
        *preprocessing.size,
    )
