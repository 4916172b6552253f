"""One way from a picture to its depth: every entry gives the same map of the same picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import frames
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.whole_patches import SmartResize
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import ResizeRule
from clipdepth_plugin.data import Sample
from clipdepth_plugin.errors import HeadMismatchError, HostError
from clipdepth_plugin.evaluation.predictors import HeadPredictor
from clipdepth_plugin.plugin.framing import framing
from clipdepth_plugin.plugin.pictures import PictureDepth
from tests.tiny.command_line import run
from tests.tiny.heads import small_head, with_config

transformers = pytest.importorskip("transformers")

PICTURE: Size = (40, 60)
CAMERA = (50.0, 50.0, 29.5, 19.5)
SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, dict[str, Any]] = {
    "squash": {"image_processor_type": "CLIPImageProcessor", "size": SQUARE},
    "shortest": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": SQUARE,
        "do_center_crop": True,
    },
    "pad": {
        "image_processor_type": "LlavaImageProcessor",
        "size": SQUARE,
        "do_pad": True,
        "do_center_crop": False,
    },
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dinov2 of four blocks that takes pictures of any size, in a folder."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.Dinov2Config(**sizes, mlp_ratio=2, patch_size=8, image_size=32)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def write_processor(folder: Path, kind: str) -> None:
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25] * 3, **PROCESSORS[kind]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def picture() -> Image.Image:
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize(PICTURE[::-1], Image.Resampling.BICUBIC)


def make_head(host: nn.Module, size: Size | None, rule: ResizeRule | None) -> DepthHead:
    """Its native maps have the size of the tower's input, so that maps are resized once."""
    record = {"input_size": size, "resize": rule, "canonical_focal": 30.0}
    return small_head(
        host, channels=(8, 8, 8), semantic_levels=(4, 3, 2), structural_levels=(1, 0), **record
    )


def of_command(folder: Path, head: DepthHead, tmp_path: Path) -> Tensor:
    picture().save(tmp_path / "one.png")
    head.save_pretrained(tmp_path / "head")
    given = ("--host", folder, "--head", tmp_path / "head", "-o", tmp_path, "--focal-px", "50")
    result = run("predict", tmp_path / "one.png", *given, "--npy")
    assert result.exit_code == 0, result.output
    return torch.from_numpy(np.load(tmp_path / "one.npy"))[None]


def of_evaluation(plugin: DepthPlugin) -> Tensor:
    image_3HW = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    (map_1HW,) = HeadPredictor(plugin)([Sample(image_3HW, torch.ones(1, *PICTURE), CAMERA, "")])
    return map_1HW


def of_host(host: nn.Module, head: DepthHead, shown: Preprocessing) -> Tensor:
    """The host's own forward on such pixels, read in the picture."""
    with attach(host, head, processor=shown) as plugin, torch.no_grad():
        host(frames([picture()], shown)[0])
        return plugin.predict(original_sizes=[PICTURE], intrinsics=CAMERA)[0]


def of_module(plugin: DepthPlugin, shown: Preprocessing) -> Tensor:
    """``plugin(pixels)`` with the camera of the view, and placed by hand."""
    pixels_13HW, (view,) = frames([picture()], shown)
    with torch.no_grad():
        return view.to_image(plugin(pixels_13HW, intrinsics=view.intrinsics(CAMERA))[0])


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
@pytest.mark.parametrize(
    ("kind", "rule", "unseen"),
    [
        ("squash", "whole", False),
        ("shortest", "whole", False),
        ("shortest", None, True),
        ("shortest", "host", True),
        ("pad", "host", False),
    ],
)
def test_every_entry_gives_the_same_map(
    kind: str, rule: ResizeRule | None, unseen: bool, size: Size, tower: Path, tmp_path: Path
) -> None:
    write_processor(tower, kind)
    loaded = load_host(str(tower))
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.resize == kind
    head = make_head(loaded.model, size, rule)
    plugin = DepthPlugin(loaded.model, head, processor=loaded.preprocessing)
    shown = framing(head.config, loaded.preprocessing)
    assert shown.size == size
    assert shown.resize == ("squash" if rule == "whole" else kind)
    expected_1HW = of_command(tower, head, tmp_path)
    assert bool(expected_1HW.isnan().any()) == unseen
    for got_1HW in (
        of_evaluation(plugin),
        of_host(loaded.model, head, shown),
        of_module(plugin, shown),
        PictureDepth(plugin)([picture()], CAMERA)[0],
    ):
        assert got_1HW.shape == (1, *PICTURE)
        torch.testing.assert_close(got_1HW, expected_1HW, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_metres_do_not_depend_on_the_input_size(tower: Path) -> None:
    """Twice the pixels of the same field of view are a lens of twice the focal length."""
    write_processor(tower, "squash")
    loaded = load_host(str(tower))
    head = make_head(loaded.model, (32, 32), "whole")
    factors = []
    for size in ((32, 32), (64, 64), (96, 48)):
        depth_of = PictureDepth(
            DepthPlugin(loaded.model, head), loaded.preprocessing, input_size=size
        )
        assert depth_of.framing.size == size
        known, assumed = (depth_of([picture()], camera)[0] for camera in (CAMERA, [None]))
        factors.append(float((known / assumed).mean()))
    assert factors == pytest.approx([factors[0]] * 3, rel=1e-5)
    assert factors[0] == pytest.approx(50 * (32 * 32 / 40 / 60) ** 0.5 / 30, rel=1e-5)
    older = head.config.model_copy(update={"input_size": None})
    assert (older.focal_at((64, 64)), head.config.focal_at((64, 64))) == (30.0, 60.0)


def test_a_module_takes_cameras_and_says_once_what_it_assumed(
    tower: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = load_host(str(tower)).model
    head = make_head(host, (32, 32), "whole")
    pixels_B3HW = torch.rand(2, 3, 32, 32)
    said = "no camera given: the metres are those of a focal length of 30 px at 32 x 32"
    for _ in range(2):  # another plug-in says it again
        plugin = DepthPlugin(host, head)
        with torch.no_grad():
            plain, again = plugin(pixels_B3HW), plugin(pixels_B3HW)
            assert caplog.text.count(said) == 1
            one, each = plugin(pixels_B3HW, focal_px=60.0), plugin(pixels_B3HW, focal_px=[60, None])
        torch.testing.assert_close(again, plain)
        torch.testing.assert_close(one, plain * 2)
        torch.testing.assert_close(each, torch.stack([plain[0] * 2, plain[1]]))
        caplog.clear()
    with pytest.raises(HostError, match="3 given for 2 images"):
        plugin(pixels_B3HW, intrinsics=[CAMERA] * 3)
    blind = with_config(head, canonical_focal=None)
    with pytest.raises(HeadMismatchError, match="without a canonical camera"):
        DepthPlugin(host, blind)(pixels_B3HW, focal_px=1.0)


SQUASH = Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), "squash")


@pytest.mark.parametrize(
    ("record", "hosts", "said"),
    [
        ({}, replace(SQUASH, resize="shortest"), None),
        ({"input_size": (32, 32), "resize": "whole"}, SQUASH, None),
        ({"input_size": (32, 32), "resize": "whole"}, replace(SQUASH, resize=None), None),
        ({"input_size": (32, 32), "resize": "host"}, replace(SQUASH, resize="pad"), None),
        (
            {"input_size": (32, 32), "resize": "whole"},
            replace(SQUASH, resize="shortest"),
            "pictures squashed to 32 x 32; this host's are resized by the short side and cropped",
        ),
        (
            {"input_size": (32, 32), "resize": "host"},
            replace(SQUASH, view_rules=(SmartResize(8, 64, 4096),)),
            "squashed to 32 x 32; this host's are resized to whole patches or squashed, at 32 x 32",
        ),
        (
            {"input_size": (64, 64), "resize": "host"},
            replace(SQUASH, resize="pad"),
            "padded to a square to 64 x 64; this host's are padded to a square, at 32 x 32",
        ),
    ],
)
def test_attach_says_where_the_host_shows_other_views(
    record: dict[str, Any],
    hosts: Preprocessing,
    said: str | None,
    host: nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = small_head(host, **record)
    with attach(host, head, processor=hosts) as plugin:
        plugin.detach()
        plugin.attach()
    assert len(caplog.records) == (said is not None)
    assert said is None or said in caplog.text
