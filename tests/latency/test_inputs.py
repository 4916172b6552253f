"""Towers that take no plain pictures: a processor or a call of the user's makes their inputs.

A clock that passes advance stands for time: no test here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from torch import nn
from typer.testing import CliRunner, Result

from clipdepth_plugin.cli.app import app
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.audit import audit
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.subject import make_subject, random_heads, subject_from_call
from tests.tiny.case import PATCH
from tests.tiny.clock import Clock
from tests.tiny.packed import EVERY_PACKED, PACKED
from tests.tiny.packed_case import PackedCase

MakeHost = Callable[[str], nn.Module]
TOWER, HEAD = 0.100, 0.020
Grids = list[tuple[int, tuple[int, int]]]

_SIDE = 4 * PATCH
_PIXEL_LIMITS = {"min_pixels": PATCH * PATCH, "max_pixels": 64 * PATCH * PATCH}
# Host, its processor's class and options (None: clips of random frames), the views of two pictures.
KINDS: list[tuple[str, str | None, dict[str, Any], Grids]] = [
    ("qwen2_5_vl", "Qwen2VLImageProcessor", {"merge_size": 2, **_PIXEL_LIMITS}, [(2, (6, 4))]),
    ("kimi_k25", "Kimi_K25ImageProcessor", {"merge_size": 2}, [(2, (6, 4))]),
    ("siglip2", "Siglip2ImageProcessor", {"max_num_patches": 24}, [(2, (6, 4))]),
    ("minicpmv4_6", "MiniCPMV4_6ImageProcessor", {"scale_resolution": _SIDE}, []),
    ("pix2struct", "Pix2StructImageProcessor", {"max_patches": 24, "is_vqa": False}, [(2, (6, 4))]),
    ("mllama", "MllamaImageProcessor", {"size": {"height": _SIDE, "width": _SIDE}}, []),
    ("videomae", None, {}, []),
    ("timesformer", None, {}, []),
]


def _case(name: str) -> PackedCase:
    (case,) = (case for case in EVERY_PACKED if case.name == name)
    if case not in PACKED:
        pytest.skip("not in this transformers")
    return case


def _processor(kind: str | None, options: dict[str, Any]) -> Any:
    patch: Any = PATCH
    if kind is None:
        return None
    if kind.startswith("Pix2Struct"):
        patch = {"height": PATCH, "width": PATCH}
    given = options if kind.startswith("Mllama") else {"patch_size": patch, **options}
    return getattr(transformers, kind)(**given)


@pytest.mark.parametrize(("name", "kind", "options", "views"), KINDS, ids=[k[0] for k in KINDS])
def test_a_tower_of_another_input_is_measured(
    name: str, kind: str | None, options: dict[str, Any], views: Grids
) -> None:
    host = _case(name).host()
    size = (6 * PATCH, 4 * PATCH) if views else None
    if name == "minicpmv4_6":
        size = (_SIDE, _SIDE)
    subject = make_subject(host, size=size, batch=2, processor=_processor(kind, options))
    seen = [(one.count, one.grid) for one in subject.views]
    assert not views or seen == views
    assert subject.batch >= 2
    heads = random_heads(subject, ["fast"])
    clock = Clock()
    clock.charge(subject.tower.patch_embed, lambda _: TOWER)
    clock.charge(heads["fast"], lambda _: HEAD)
    report = audit(subject, heads, method=replace(clock.method, rounds=8))
    figures = {(one.scope, one.what) for one in report.figures}
    assert figures == {
        *(("tower", what) for what in ("alone", "control", "hooks", "depth")),
        ("head", "alone"),
    }
    (added,) = report.figure("tower + fast, eager").added
    assert added.percent.contains(100 * HEAD / TOWER)
    assert report.settings.batch == subject.batch
    assert report.settings.size == subject.views[0].pixel_size


def test_the_report_says_what_the_processor_made_of_the_size() -> None:
    subject = make_subject(
        _case("siglip2").host(),
        size=(200, 100),
        processor=_processor("Siglip2ImageProcessor", {"max_num_patches": 24}),
    )
    (views,) = subject.views
    height, width = views.pixel_size
    assert height < 200
    assert f"are 1 of {height} x {width} pixels (asked for: 1 of 200 x 100)" in subject.notes[0]


def test_a_call_of_the_users_own_is_measured_with_all_its_passes() -> None:
    case = _case("qwen2_5_vl")
    host = case.host()
    inputs = case.pack(case.pictures(grids := ((4, 2), (4, 2), (2, 6))))

    def call() -> None:
        for _ in range(2):
            case.run(host, inputs)

    subject = subject_from_call(host, call)
    assert [one.scope for one in subject.baselines] == ["tower", "whole"]
    assert subject.batch == len(grids)
    assert subject.notes == ("The call runs the tower 2 times; its first pass is measured alone.",)
    heads = random_heads(subject, ["fast"])
    clock = Clock()
    clock.charge(subject.tower.patch_embed, lambda _: TOWER)
    clock.charge(heads["fast"], lambda _: HEAD / len(subject.views))
    report = audit(subject, heads, method=replace(clock.method, rounds=8))
    for scope in ("tower", "whole"):
        (added,) = report.figure(f"{scope} + fast, eager").added
        assert added.percent.contains(100 * HEAD / TOWER)
    whole, tower = (report.figure(f"{scope} alone").p50_ms for scope in ("whole", "tower"))
    assert whole == pytest.approx(2 * tower, rel=0.2)


def test_a_tower_with_fixed_positions_is_measured_at_another_size(make_host: MakeHost) -> None:
    subject = make_subject(make_host("hf_clip_vision"), size=(48, 64))
    clock = Clock()
    clock.charge(subject.tower.module, lambda _: TOWER)
    report = audit(subject, random_heads(subject, ["fast"]), method=replace(clock.method, rounds=8))
    assert report.settings.size == (48, 64)
    assert report.figure("head alone: fast, eager").what == "alone"


def _fails() -> None:
    raise RuntimeError("out of cheese")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("siglip2", lambda host: make_subject(host, size=(32, 32)), "and spatial_shapes, which"),
        ("qwen2_vl", lambda host: make_subject(host, size=(32, 32)), r"subject_from_call\(host"),
        (
            "qwen2_vl",
            lambda host: make_subject(host, processor=transformers.CLIPImageProcessor()),
            r"does not know its input size: give one",
        ),
        (
            "qwen2_vl",
            lambda host: make_subject(
                host, size=(32, 32), processor=transformers.CLIPImageProcessor()
            ),
            "does not run on what CLIPImageProcessor.* makes .*give the host's own processor",
        ),
        (
            "qwen2_vl",
            lambda host: make_subject(host, size=(32, 32), processor={"patch_size": 14}),
            "processor is dict, expected the host's image processor itself",
        ),
        (
            "qwen2_vl",
            lambda host: make_subject(
                host,
                size=(32, 32),
                scope="prefill",
                processor=_processor("Qwen2VLImageProcessor", _PIXEL_LIMITS),
            ),
            r"prompts are made for \(B, 3, H, W\) pixels alone",
        ),
        ("qwen2_vl", lambda host: subject_from_call(host, lambda: 1), "does not run the tower"),
        ("qwen2_vl", lambda host: subject_from_call(host, _fails), "fails .*out of cheese"),
        (
            "qwen2_vl",
            lambda host: subject_from_call(host, cast("Any", 3)),
            "call is int, expected a function",
        ),
    ],
)
def test_what_can_not_be_made_is_refused_with_advice(
    name: str, make: Callable[[Any], Any], message: str
) -> None:
    host = _case(name).host()
    with pytest.raises(BenchError, match=message):
        make(host)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in host.modules())


def test_the_command_takes_the_processor_beside_the_config(tmp_path: Path) -> None:
    _case("qwen2_vl").host().config.save_pretrained(tmp_path)

    def bench(*more: str) -> Result:
        short = ("--rounds", "8", "--warmup", "2", "--separate", "14", "--form", "eager")
        given = (str(tmp_path), "--random-weights", "--preset", "fast", *short, *more)
        return CliRunner().invoke(app, ["bench", *given])

    refused = bench("--size", "32")
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    assert "put the host's preprocessor_config.json beside its config.json, or measure" in told
    _processor("Qwen2VLImageProcessor", _PIXEL_LIMITS).save_pretrained(tmp_path)
    run = bench("--size", "32", "--batch", "2", "--json")
    assert run.exit_code == 0, run.output
    report = Audit.model_validate_json(run.stdout)
    assert (report.settings.batch, report.settings.size) == (2, (32, 32))
    assert {one.scope for one in report.figures} == {"tower", "head", "separate"}
    assert "does not know its input size: give one (--size)" in " ".join(bench().stderr.split())


def test_operations_that_torch_can_not_count_are_unknown() -> None:
    from clipdepth_plugin.latency.resources import count_gflops

    assert count_gflops(_fails) is None
