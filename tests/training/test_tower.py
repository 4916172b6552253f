"""What the tower is shown in training is what it is shown in evaluation."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clipdepth_plugin.adapters.pixels import normalised, to_pixels
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.data.views import make_view
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.accelerator import with_precision
from clipdepth_plugin.training.session import open_session
from clipdepth_plugin.training.tower import load_tower, make_head
from tests.training.conftest import PROCESSOR, TinyRuns

CROPS = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
}


@pytest.mark.parametrize(("settings", "kind"), [({}, "squash"), (CROPS, "shortest")])
def test_training_shows_the_picture_that_evaluation_shows(
    tiny: TinyRuns, tmp_path: Path, settings: dict[str, Any], kind: str
) -> None:
    """Whatever the host's own preprocessing crops."""
    host = tmp_path / "host"
    shutil.copytree(tiny.host, host)
    (host / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **settings}))
    sample = open_dataset(DataConfig(format="rgbd", root=tiny.data, split="test"))[0]
    image = Image.fromarray(sample.image_3HW.permute(1, 2, 0).numpy())
    seen = {}
    for resize in ("whole", "host"):
        tower = load_tower(tiny.config("run", host=str(host), resize=resize))
        view = make_view(sample, tower.preprocessing, (16, 16))
        seen[resize] = normalised(view.rgb_3HW, tower.preprocessing)
    shown = to_pixels([image], tower.preprocessing.whole())[0]
    assert tower.preprocessing.resize == kind
    torch.testing.assert_close(seen["whole"], shown, rtol=0, atol=1e-6)
    assert torch.equal(seen["host"], seen["whole"]) == (kind == "squash")


@pytest.mark.parametrize(
    ("activation", "size", "pixels", "warns", "advised"),
    [
        ("relu", [28, 28], 28, True, True),
        ("relu", [16, 16], 28, False, False),
        ("log", [28, 28], 28, False, False),
        ("relu", [16, 16], 30, True, False),
        ("relu", [30, 30], 30, True, False),
    ],
)
def test_a_resize_that_may_hide_a_dead_relu_is_told(
    tiny: TinyRuns,
    caplog: pytest.LogCaptureFixture,
    activation: str,
    size: list[int],
    pixels: int,
    *,
    warns: bool,
    advised: bool,
) -> None:
    """Patches of 7 in 28 pixels, doubled twice: the head's own maps are 16 x 16.

    In 30 pixels no patch covers the last two, and maps are resized to make room for them.
    """
    head = {"options": {**tiny.head, "activation": activation}}
    with caplog.at_level(logging.WARNING):
        sizes = {"input_size": [pixels, pixels], "output_size": size}
        open_session(tiny.config("run", head=head, **sizes))
    assert ("the head's own maps are 16 x 16" in caplog.text) == warns
    assert ("set output_size: [16, 16]" in caplog.text) == advised


@pytest.mark.parametrize(
    ("precision", "features", "refused"),
    [
        ("bf16", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ("bf16", {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ("bf16", {"neon": True}, False),
        ("bf16", None, False),
        ("no", {"avx512_bf16": False}, False),
        ("bf16-emulated", {"avx512_bf16": False}, False),
    ],
    ids=["imitated", "native", "not known", "older torch", "float32", "asked for"],
)
def test_a_processor_that_emulates_bfloat16_is_refused_unless_asked_for(
    tiny: TinyRuns,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    features: dict[str, bool] | None,
    *,
    refused: bool,
) -> None:
    if features is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    config = tiny.config("run", precision=precision)
    with pytest.raises(TrainingError, match="auto, or bf16-emulated") if refused else nullcontext():
        assert open_session(config).context.config.precision == precision.removesuffix("-emulated")


@pytest.mark.parametrize(
    ("features", "launched", "chosen"),
    [
        ({"amx_bf16": True}, "no", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "no", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False}, "no", "no"),
        (None, "no", "no"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16", "bf16"),
    ],
)
def test_precision_is_chosen_by_the_processor(
    tiny: TinyRuns,
    monkeypatch: pytest.MonkeyPatch,
    features: dict[str, bool] | None,
    launched: str,
    chosen: str,
) -> None:
    if features is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert with_precision(tiny.config("run", precision="auto")).precision == chosen
    if launched != "no":
        with pytest.raises(TrainingError, match="--mixed_precision bf16; leave"):
            with_precision(tiny.config("run", precision="fp16"))


def test_a_head_records_what_it_is_trained_with(tiny: TinyRuns) -> None:
    options = {"options": {**tiny.head, "canonical_focal": 30.0}}
    config = tiny.config("run", head=options, input_size=[14, 28], resize="host")
    head = make_head(config, load_tower(config))
    assert (head.config.input_size, head.config.resize) == ((14, 28), "host")
    assert head.config.canonical_focal == 30.0
    head.save_pretrained(tiny.folder / "saved")
    further = tiny.config("further", head={"init": str(tiny.folder / "saved")})
    head = make_head(further, load_tower(further))
    assert (head.config.input_size, head.config.resize) == ((28, 28), "host")
    assert head.config.canonical_focal == pytest.approx(30 * 2**0.5)  # the same field of view
