"""A row for each config field: it always acts, or what switches it off and the refusal's words."""

from __future__ import annotations

from typing import Any

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.data import AugmentConfig, DataConfig
from clipdepth_plugin.settings import Settings
from clipdepth_plugin.training import settings as parts
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.losses import LossConfig

ACTS = "acts in every combination"

Row = str | tuple[dict[str, Any], str]

RGBD = {"format": "rgbd", "root": "x"}
TAR = {"format": "webdataset", "root": "x.tar"}
MAT = {"format": "nyu_mat", "root": "x", "split": "all"}
NO_FILM = {"film": False}
COMPACT = {"preset": "fast", "stem_channels": 0, "likeness_channels": 0}
ALL_OFF = {
    "rotation_degrees": 0,
    "gamma": (1, 1),
    "brightness": (1, 1),
    "colour": (1, 1),
    "probability": 0.7,
}
CACHED = {"cache": {"folder": "x"}}
UNVALIDATED = {"data": {"train": [RGBD]}}


def _idle(field: str, value: Any, by: str, **others: Any) -> Row:
    return ({field: value, **others}, f"{field}: does nothing with {by}")


def _unread(field: str, value: Any, **others: Any) -> Row:
    return ({field: value, **others}, f"{field}: not read by format")


FIELDS: dict[type[Settings], tuple[dict[str, Any], dict[str, Row]]] = {
    HeadConfig: (
        {"width": 8},
        {
            "width": ACTS,
            "preset": ACTS,
            "decoder": ACTS,
            "semantic_levels": ACTS,
            "structural_levels": _idle("structural_levels", (5, 4, 3), "st", structural=False),
            "channels": ACTS,
            "film_hidden": _idle("film_hidden", 8, "film: false", film=False),
            "film": ACTS,
            "structural": ACTS,
            "stem_channels": ({"stem_channels": 8}, "no image stem"),
            "likeness_channels": ({**COMPACT, "likeness_channels": 4}, "stem"),
            "join_kernel": ({**COMPACT, "join_kernel": 1}, "no image stem"),
            "context": _idle("context", "mean", "film: false", film=False),
            "activation": ACTS,
            "depth_range": ACTS,
            "metric": ACTS,
            "confidence": _idle("confidence", True, "metric: false", metric=False),
            "confidence_scale": _idle("confidence_scale", 2, "confidence: false"),
            "canonical_focal": _idle("canonical_focal", 60, "metric: false", metric=False),
            "calibration": ACTS,
            "input_size": ACTS,
            "resize": ACTS,
            "norm": ACTS,
            "dropout": ACTS,
            "auxiliary": ({**COMPACT, "auxiliary": 1}, "no auxiliary outputs"),
            "provenance": ACTS,
        },
    ),
    AugmentConfig: (
        {},
        {
            "flip": ACTS,
            "rotation_degrees": _idle("rotation_degrees", 3, "probability: 0", probability=0),
            "zoom": _idle("zoom", (1, 2), "probability: 0", probability=0),
            "gamma": _idle("gamma", (0.5, 2), "probability: 0", probability=0),
            "brightness": _idle("brightness", (0.5, 2), "probability: 0", probability=0),
            "colour": _idle("colour", (0.5, 2), "probability: 0", probability=0),
            "blur": _idle("blur", (0, 2), "probability: 0", probability=0),
            "contrast": _idle("contrast", (0.5, 2), "probability: 0", probability=0),
            "saturation": _idle("saturation", (0, 2), "probability: 0", probability=0),
            "noise": _idle("noise", (0, 0.1), "probability: 0", probability=0),
            "jpeg": _idle("jpeg", (30, 90), "probability: 0", probability=0),
            "probability": (ALL_OFF, "probability: does nothing with every part"),
        },
    ),
    DataConfig: (
        RGBD,
        {
            "format": ACTS,
            "root": ACTS,
            "split": _unread("split", "val", **TAR),
            "name": ACTS,
            "files": ({**MAT, "files": "splits.mat"}, "files: does nothing with split: all"),
            "image_root": _unread("image_root", "x"),
            "depth_root": _unread("depth_root", "x"),
            "depth_scale": ACTS,
            "depth_key": _unread("depth_key", "depths"),
            "min_depth": ACTS,
            "max_depth": ACTS,
            "intrinsics": ACTS,
            "crop": _unread("crop", "kb", **TAR),
            "redistributable": _unread("redistributable", True, **TAR),
            "fold": _unread("fold", "1/5", **TAR),
            "with_camera": _unread("with_camera", True, **TAR),
            "limit": ACTS,
            "repeat": _idle("repeat", 2, "share", share=0.3),
            "share": ACTS,
            "scale_share": ACTS,
            "augment": ACTS,
            "subset": _unread("subset", "x"),
            "revision": _unread("revision", "x"),
            "image_column": _unread("image_column", "x"),
            "depth_column": _unread("depth_column", "x"),
            "intrinsics_column": _unread("intrinsics_column", "x"),
            "shuffle_buffer": _unread("shuffle_buffer", 5),
        },
    ),
    LossConfig: (
        {},
        {
            "min_depth": ACTS,
            "silog": ACTS,
            "silog_mean": _idle("silog_mean", 1, "silog: 0", silog=0, auxiliary=()),
            "auxiliary": ACTS,
            "ssim": ACTS,
            "log_l1": ACTS,
            "trim": _idle("trim", 0.1, "silog, log_l1, ssi", silog=0, auxiliary=()),
            "gradient": ACTS,
            "gradient_scales": _idle("gradient_scales", 2, "gradient: 0"),
            "ssi": ACTS,
            "ssi_gradient": ACTS,
            "confidence": ACTS,
        },
    ),
    parts.HeadSettings: (
        {},
        {
            "preset": ({"preset": "fast", "init": "x"}, "init: a saved head"),
            "options": ({"options": {"resize": "host"}}, r"options\.resize: is set by the run"),
            "init": ACTS,
            "norm_init_pictures": ({"norm_init_pictures": 9}, "norm_init_pictures: does nothing"),
        },
    ),
    parts.DataSettings: (
        {"train": [RGBD]},
        {
            "train": ({"train": [{**TAR, "repeat": 2}]}, r"train\.0\.repeat: weighs a set"),
            "validation": (
                {"train": [TAR], "validation": [{**TAR, "shuffle_buffer": 3}]},
                r"validation\.0\.shuffle_buffer: does nothing",
            ),
        },
    ),
    parts.OptimiserSettings: ({}, dict.fromkeys(("lr", "weight_decay", "betas"), ACTS)),
    parts.ScheduleSettings: (
        {},
        {"warmup": ACTS, "final_lr": _idle("final_lr", 1e-5, "warmup: 1", warmup=1)},
    ),
    parts.CacheSettings: ({"folder": "x"}, dict.fromkeys(("folder", "dtype", "views"), ACTS)),
    parts.LoggingSettings: ({}, dict.fromkeys(("every", "pictures", "tensorboard"), ACTS)),
    parts.ProvenanceSettings: ({}, dict.fromkeys(("data", "license", "notes"), ACTS)),
    TrainConfig: (
        {"run": "x", "host": "demo", "data": {"train": [RGBD], "validation": [RGBD]}},
        {
            "run": ACTS,
            "host": ACTS,
            "tower": ACTS,
            "input_size": ACTS,
            "resize": ACTS,
            "head": ACTS,
            "data": ACTS,
            "augment": ({**CACHED, "augment": {"zoom": (1, 2)}}, r"augment\.zoom: does nothing"),
            "loss": ACTS,
            "optimiser": ACTS,
            "schedule": ACTS,
            "epochs": ({"epochs": 3, "steps": 3}, "epochs, steps"),
            "steps": ({"epochs": 3, "steps": 3}, "epochs, steps"),
            "batch_size": ACTS,
            "gradient_accumulation": ACTS,
            "clip": ACTS,
            "ema": ACTS,
            "precision": ACTS,  # by the device: tests/training/test_tower.py
            "output_size": ACTS,
            "seed": ACTS,
            "workers": ACTS,
            "validate_every": _idle("validate_every", 5, "data.validation", **UNVALIDATED),
            "select": _idle("select", "abs_rel_aligned", "data.validation", **UNVALIDATED),
            "calibrate_confidence": _idle("calibrate_confidence", False, "head.options.conf"),
            "checkpoint_every": ACTS,
            "keep": ACTS,
            "cache": (
                {"cache": {"folder": "x", "views": 2}, "augment": {"colour": (0.5, 2)}},
                r"augment\.colour: does nothing with cache\.views: 2",
            ),
            "bad_file_limit": ACTS,
            "sync_batch_norm": (
                {"sync_batch_norm": True, "head": {"preset": "fast"}},
                "sync_batch_norm: does nothing",
            ),
            "logging": (
                {"logging": {"pictures": 2}, **UNVALIDATED},
                r"logging\.pictures: does nothing",
            ),
            "provenance": ACTS,
        },
    ),
}
