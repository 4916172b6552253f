"""Every option of every command has a row: it always acts, or is refused where it cannot.

A new one fails here until it has a row: ``ALWAYS``, or the test of its refusal. Numbers are tried
at values that nobody can mean.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import pytest
from rich.text import Text

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
from clipdepth_plugin.settings import _kinds
from tests.tiny.command_line import run, words
from tests.tiny.setting_rows import ACTS

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


@pytest.mark.parametrize("command", OPTIONS)
def test_help_is_read_as_it_is_written(command: str) -> None:
    """Typer's help takes words in brackets for markup, and drops them."""
    hints = get_type_hints(OPTIONS[command][0], include_extras=True)
    texts = [one.help for hint in hints.values() for one in getattr(hint, "__metadata__", ())]
    assert texts
    for text in texts:
        assert text is None or Text.from_markup(text).plain == text


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
