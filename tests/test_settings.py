"""Every option and every config field has a row: it always acts, or is refused where it cannot.

A new one fails here until it has a row: ``ACTS``, or what switches it off and the words of the
refusal. Numbers of every field and option are tried at values that nobody can mean.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from clipdepth_plugin.cli.annotate import AnnotateOptions
from clipdepth_plugin.cli.bench import BenchOptions
from clipdepth_plugin.cli.calibrate import CalibrateOptions
from clipdepth_plugin.cli.distill import DistillOptions
from clipdepth_plugin.cli.eval import EvalOptions
from clipdepth_plugin.cli.export import ExportOptions
from clipdepth_plugin.cli.inspect import InspectOptions
from clipdepth_plugin.cli.label import LabelOptions
from clipdepth_plugin.cli.layers import LayersOptions
from clipdepth_plugin.cli.predict_options import PredictOptions
from clipdepth_plugin.cli.train import TrainOptions
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.data import AugmentConfig, DataConfig
from clipdepth_plugin.settings import STORED, Settings, _kinds
from clipdepth_plugin.training import settings as parts
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.losses import LossConfig
from tests.tiny.command_line import run, words

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

OPTIONS: dict[str, tuple[type[Any], list[str], dict[str, str]]] = {
    "inspect": (InspectOptions, ["demo"], {}),
    "predict": (
        PredictOptions,
        ["x", "--host", "demo", "--head", "demo", "-o", "x"],
        {
            "exported": "in place of host and head: tests/runtime/test_cli_exported.py",
            "max_pixels": ACTS,
            "focal_px": "refused for heads without canonical_focal: test_cli_predict.py",
            "confidence": "refused for heads without it: test_cli_predict.py",
        },
    ),
    "train": (TrainOptions, ["x"], {}),
    "eval": (
        EvalOptions,
        ["--host", "demo", "--head", "demo", "--data", "rgbd:x", "-o", "x"],
        {
            "protocol": "refused where the data set's file contradicts it: below",
            "data": "fields that only training reads are refused: below",
            "kb_crop": "KITTI's protocols only: test_protocols.py",
        },
    ),
    "layers": (
        LayersOptions,
        ["--host", "demo", "--data", "rgbd:x"],
        {"stages": "refused beyond the tower's levels: test_layers.py"},
    ),
    "label": (
        LabelOptions,
        ["x", "--teacher", "head:demo@demo", "-o", "x"],
        {
            "max_depth": "refused for relative teachers: tests/labelling/test_label_run.py",
            "actors": "refused without --ray: tests/labelling/test_cli_label.py",
            "every": "of videos and episodes alone, as its help says",
        },
    ),
    "annotate": (
        AnnotateOptions,
        ["x", "--teacher", "head:demo@demo", "-o", "x"],
        {
            **dict.fromkeys(
                ("teacher", "host", "head"), "one or the others: tests/lerobot/test_annotate.py"
            ),
            "actors": "refused without --ray: tests/annotating/test_annotating.py",
        },
    ),
    "distill": (
        DistillOptions,
        ["--host", "demo", "-o", "x"],
        {
            **dict.fromkeys(
                ("teacher", "pictures", "labels"),
                "labels, or the two others: tests/training/test_distilling.py",
            ),
            **dict.fromkeys(
                ("focal_px", "intrinsics", "every", "batch_size"),
                "of the labelling alone; labels that are there keep theirs",
            ),
        },
    ),
    "calibrate": (
        CalibrateOptions,
        ["--host", "demo", "--head", "demo", "--data", "rgbd:x", "-o", "x"],
        {
            "slope": "refused where the points do not determine it: test_cli_calibrate.py",
            "confidence": "the same",
        },
    ),
    "export": (
        ExportOptions,
        ["--host", "demo", "--head", "demo", "--output", "out"],
        {"opset": "refused without ONNX files: test_export.py"},
    ),
    "bench": (
        BenchOptions,
        ["demo"],
        {"text_tokens": "refused where no prompt is measured: test_cli_bench.py"},
    ),
}
"""Command -> its options, arguments that it needs, and the options that not every case takes."""

ALWAYS = {
    "inspect": "host as_json random_weights",
    "predict": "images host head output npy ply glb frames rgbd stream intrinsics undistort "
    "batch_size device tower other_tower overwrite",
    "train": "config overrides resume cache",
    "eval": "host head output align baseline_data flip input_size pictures batch_size device tower "
    "other_tower",
    "layers": "host data val_data max_images patches ridge as_json device tower",
    "label": "pictures teacher folder split focal_px intrinsics exif masks flip batch_size device "
    "dtype threads shard ray bad_file_limit",
    "annotate": "dataset folder camera max_depth focal_px intrinsics batch_size device dtype shard "
    "ray",
    "distill": "host folder truth preset epochs input_size device tower overrides",
    "calibrate": "host head data output batch_size device tower other_tower",
    "export": "host head output format dtype size dynamic_batch tower tower_alone other_tower",
    "bench": "host head preset form tower scope batch size dtype device threads rounds warmup seed "
    "separate exported random_weights output as_json",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_has_a_row(command: str) -> None:
    options, _, conditional = OPTIONS[command]
    names = {field.name for field in dataclasses.fields(options)}
    assert names == {*ALWAYS[command].split(), *conditional}


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_every_field_has_a_row(model: type[Settings]) -> None:
    assert set(model.model_fields) == set(FIELDS[model][1])


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        pytest.param(model, {**base, **row[0]}, row[1], id=f"{model.__name__}.{name}")
        for model, (base, rows) in FIELDS.items()
        for name, row in rows.items()
        if isinstance(row, tuple)
    ],
)
def test_what_another_setting_switches_off_is_refused(
    model: type[Settings], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(given)


NUMBERS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for model in FIELDS
    for name, field in model.model_fields.items()
    # Cameras have checks of their own: tests/test_arguments.py.
    if {int, float} & set(_kinds(field.annotation)) and name != "intrinsics"
]


@pytest.mark.parametrize(("model", "name"), NUMBERS)
def test_numbers_that_nobody_means_are_refused(model: type[Settings], name: str) -> None:
    base = FIELDS[model][0]
    old = model.model_validate(base)
    default, kinds = getattr(old, name), list(_kinds(model.model_fields[name].annotation))
    count = len(default) if isinstance(default, tuple) else 2
    row = tuple in {getattr(kind, "__origin__", kind) for kind in kinds} or isinstance(
        default, tuple
    )
    row = row or name in ("input_size", "output_size")
    for value in (math.nan, math.inf, -math.inf, -1e30, 10**30, 10**400, True):
        given = (value,) * max(count, 1) if row else value
        with pytest.raises((ValidationError, ValueError)):
            model.model_validate({**base, name: given})


def _numeric(command: str) -> list[Any]:
    options, needed, _ = OPTIONS[command]
    kinds = get_type_hints(options)
    return [
        pytest.param([command, *needed, f"--{name.replace('_', '-')}"], id=f"{command} {name}")
        for name in (field.name for field in dataclasses.fields(options))
        if {int, float} & set(_kinds(kinds[name]))
    ]


@pytest.mark.parametrize("arguments", [one for command in OPTIONS for one in _numeric(command)])
def test_options_refuse_numbers_that_nobody_means(arguments: list[str]) -> None:
    values = 2 if arguments[-1] == "--input-size" else 1
    for value in ("nan", "inf", "-1", f"{10**20}", f"{10**400}", "1.5e300", "", "\u00b2"):
        done = run(*arguments, *[value] * values)
        assert done.exit_code == 2, value
        assert arguments[-1] in words(done.stderr)
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "name", ["meta", "cuda:99", "abacus", "", "cpu:x", "mps", "-1", "9" * 30, "lazy", "hpu", "a\0b"]
)
def test_devices_that_compute_nothing_are_refused(name: str) -> None:
    done = run("eval", *OPTIONS["eval"][1], "--device", name, "--data", "nyu:x")
    assert done.exit_code == 2
    from clipdepth_plugin.cli.device import find_device

    with pytest.raises(ValueError, match="--device") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ("max_depth: 5", ["--protocol", "nyu"], "max_depth is 5.0, but --protocol nyu has its own"),
        ("min_depth: 1", ["--protocol", "kitti-garg"], "min_depth is 1.0, but --protocol kitti"),
        ("crop: kb", ["--protocol", "kitti-eigen"], "crop is kb, but --protocol kitti-eigen"),
        ("repeat: 2", [], "repeat is for training"),
        ("augment: {flip: 1}", [], "augment is for training"),
        ("scale_share: 0", [], "scale_share is for training"),
        ("share: 0.5", [], "share is for training"),
    ],
)
def test_a_set_that_is_measured_may_not_contradict_the_protocol(
    tmp_path: Any, fields: str, options: list[str], message: str
) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(f"format: kitti\nroot: x\nfiles: x\n{fields}\n")
    done = run("eval", *OPTIONS["eval"][1], "--data", file, *options)
    assert done.exit_code == 2
    assert message in words(done.stderr)


def test_a_config_that_a_program_wrote_may_have_fields_that_do_nothing() -> None:
    given = {"width": 8, "film": False, "film_hidden": 8}
    assert HeadConfig.model_validate(given, context=STORED).film_hidden == 8
