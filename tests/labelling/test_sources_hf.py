"""Models of transformers as depth sources: each class gives what its own library gives."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, CLIPImageProcessor

from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.labelling.source import Picture, open_source
from clipdepth_plugin.labelling.sources.hf_units import _REFUSED, _RULES
from tests.tiny.depth_models import save_model

UNITS: dict[str, tuple[str, float | None]] = {
    "depth_anything": ("inverse depth", None),
    "depth_anything_metric": ("metres", 20.0),
    "depth_pro": ("metres", 1e4),
    "dpt": ("inverse depth", None),
    "dpt_dinov2": ("metres", None),
    "glpn": ("metres", 12.0),
    "tipsv2_dpt": ("metres", 10.0),
    "zoedepth": ("metres", None),
    "zoedepth_normed": ("metres", 10.0),
    "zoedepth_two": ("metres", None),
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = save_model(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder


@pytest.fixture
def changed(model_of: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a model's folder, to be changed."""

    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in Path(model_of(name)).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    return copy


def picture(seed: int, height: int, width: int, focal: float | None = None) -> Picture:
    """A smooth random picture."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    camera = focal and (focal, focal * 1.1, width / 2, height / 2)
    return Picture(f"seq/{seed}", np.asarray(small.resize((width, height))), camera or None)


def library_depth(folder: str, one: Picture) -> NDArray[np.float32]:
    """What transformers itself says of a picture, run alone."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    inputs = processor(images=Image.fromarray(one.image_HW3), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    post = processor.post_process_depth_estimation
    size = [one.image_HW3.shape[:2]]
    zoe = "source_sizes" in inspect.signature(post).parameters
    (posted,) = post(outputs, source_sizes=size) if zoe else post(outputs, target_sizes=size)
    return np.asarray(posted["predicted_depth"], np.float32)


def test_every_class_of_the_library_is_known_or_refused_by_name() -> None:
    """A class that transformers adds fails here until somebody has read in which units it is."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

    assert not _RULES.keys() & _REFUSED.keys()
    assert {*MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES} <= {*_RULES, *_REFUSED}
    labelled = {name for rule in _RULES for name in UNITS if name.startswith(rule)}
    assert labelled == UNITS.keys()  # each has a tiny model below
    page = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text()
    assert all(f"| `{kind}`" in page for kind in (*_RULES, *_REFUSED))


@pytest.mark.parametrize("name", UNITS)
def test_labels_are_what_the_library_gives(name: str, model_of: Callable[[str], str]) -> None:
    folder = model_of(name)
    source = open_source(f"hf:{folder}")
    assert (source.card.units, source.card.max_depth) == UNITS[name]
    assert source.card.version.startswith("sha256:")
    pictures = [picture(seed, *size) for seed, size in enumerate([(40, 56), (33, 57), (40, 56)])]
    for one, label in zip(pictures, source.label(pictures), strict=True):
        (alone,) = source.label([one])
        np.testing.assert_array_equal(alone.depth_HW, library_depth(folder, one))
        assert alone.depth_HW.dtype == np.float32
        assert float(np.ptp(alone.depth_HW)) > 1e-3
        np.testing.assert_allclose(label.depth_HW, alone.depth_HW, rtol=1e-4, atol=1e-5)


def test_pictures_of_any_shape(model_of: Callable[[str], str]) -> None:
    """The library squeezes sides of one pixel away, and takes three rows for colours."""
    sizes = [(40, 1), (1, 40), (3, 40), (40, 3)]
    for name in ("dpt", "depth_pro", "tipsv2_dpt"):
        source = open_source(f"hf:{model_of(name)}")
        labels = source.label([picture(0, *size) for size in sizes])
        assert [label.depth_HW.shape for label in labels] == sizes
        mirrored = picture(0, 20, 30).image_HW3[:, ::-1]  # a view
        one, other = source.label([Picture("view", mirrored), Picture("copy", mirrored.copy())])
        np.testing.assert_array_equal(one.depth_HW, other.depth_HW)


def test_the_heads_of_zoedepth_are_chosen_for_each_picture(changed: Callable[[str], Path]) -> None:
    """The library lets a batch vote for one head."""
    folder = changed("zoedepth_two")
    state = load_file(folder / WEIGHTS)
    state["metric_head.mlp_classifier.linear2.bias"][1] -= 0.3  # so that pictures 0 and 2 differ
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    pictures = [picture(seed, 40, 56) for seed in (0, 2)]
    source: Any = open_source(f"hf:{folder}")
    for one, label in zip(pictures, source.label(pictures), strict=True):
        np.testing.assert_array_equal(label.depth_HW, library_depth(str(folder), one))
    alone = source.label(pictures)[0].depth_HW
    source.one_by_one = False
    assert abs(source.label(pictures)[0].depth_HW / alone - 1).max() > 0.01


def test_a_known_focal_length_replaces_the_estimated_one(model_of: Callable[[str], str]) -> None:
    source = open_source(f"hf:{model_of('depth_pro')}")
    assert source.card.reads_focal
    blind, wide, tele = (picture(0, 40, 56, focal) for focal in (None, 30.0, 60.0))
    maps = [label.depth_HW for label in source.label([blind, wide, tele])]
    np.testing.assert_allclose(maps[2], maps[1] * 2, rtol=1e-5)
    np.testing.assert_array_equal(maps[0], library_depth(model_of("depth_pro"), blind))
    blind_source = open_source(f"hf:{model_of('depth_pro_no_view')}")
    (label,) = blind_source.label([picture(0, 40, 56, 56 / 2)])
    # Its canonical inverse depth is that of a focal length of one width.
    expected = library_depth(model_of("depth_pro_no_view"), blind) * (28 / 56)
    np.testing.assert_allclose(label.depth_HW, expected, rtol=1e-5)
    with pytest.raises(SourceError, match="seq/7: this model estimates no field of view"):
        blind_source.label([picture(7, 40, 56)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes(dtype: str, model_of: Callable[[str], str]) -> None:
    one = picture(0, 40, 56)
    for name in ("depth_anything_metric", "depth_pro"):
        exact, rounded = (
            open_source(f"hf:{model_of(name)}", dtype=d).label([one])[0].depth_HW
            for d in (None, dtype)
        )
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, exact, rtol=0.1)
        assert (rounded != exact).any()


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("chmv2", "", "chmv2 model can't label: it gives the height of trees"),
        ("chmv2", "?units=metres", "height of trees"),
        ("prompt_depth_anything", "", "needs a depth map .* python:module:function"),
        ("dpt_unknown", "", r"not known in which units this dpt model answers .*\?units=metres"),
        ("dpt_unknown", "?units=feet", "expected metres or inverse depth"),
        ("glpn", "?units=", "expected metres or inverse depth"),
        ("glpn", "?unit=metres", "expected [?]units=metres"),
        ("glpn", "/nothing", "neither a folder that exists nor a hub id"),
        ("depth_anything", "?units=metres", "is in inverse depth, as its config says"),
        ("glpn", "?units=inverse depth", "is in metres, as its config says"),
    ],
)
def test_units_that_are_not_known_or_wrong_are_refused(
    name: str, said: str, message: str, model_of: Callable[[str], str]
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"hf:{model_of(name)}{said}")


@pytest.mark.parametrize(
    ("name", "said"),
    [("dpt_unknown", "metres"), ("dpt_unknown", "inverse depth"), ("dpt", "metres")],
)
def test_a_user_says_the_units_that_a_config_does_not(
    name: str, said: str, model_of: Callable[[str], str]
) -> None:
    source = open_source(f"hf:{model_of(name)}?units={said}")
    assert source.card.units == said
    assert source.card.source.endswith(f"?units={said}")
    assert source.label([picture(0, 20, 30)])[0].depth_HW.shape == (20, 30)


def test_metres_at_or_below_zero_are_no_depth(changed: Callable[[str], Path]) -> None:
    folder = changed("dpt_dinov2")
    state = load_file(folder / WEIGHTS)
    state["head.head.4.bias"].fill_(0.1)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    one = picture(0, 40, 56)
    metres = open_source(f"hf:{folder}").label([one])[0].depth_HW
    given = library_depth(str(folder), one)
    assert 0 < (given <= 0).mean() < 1
    np.testing.assert_array_equal(metres, np.where(given > 0, given, np.nan))
    inverse = open_source(f"hf:{folder}?units=inverse depth").label([one])[0].depth_HW
    np.testing.assert_array_equal(inverse, given)


def _without(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        kept = {name: x for name, x in state.items() if not name.startswith(key)}
        assert len(kept) < len(state)
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _nan(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["head.conv3.bias"].fill_(torch.nan)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pickled, "pickles and not read"),
        (_without("head.conv3"), "lack 2 tensors, e.g. head.conv3.bias"),
        (_without("backbone."), "they are incomplete"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), "can't be opened"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "can't be opened"),
        (
            lambda folder: CLIPImageProcessor().save_pretrained(folder),
            "does not post-process depth",
        ),
        (_config(model_type="siglip"), "not known in which units this siglip model answers"),
        (_config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}), "can't be opened"),
        (_config(depth_estimation_type="feet"), "can't be opened"),
        (lambda folder: (folder / "config.json").write_text("[" * 9), "not valid JSON"),
        (lambda folder: os.mkfifo(folder / "more.json"), "more.json: is a pipe"),
    ],
)
def test_folders_that_are_refused(
    change: Callable[[Path], object], message: str, changed: Callable[[str], Path]
) -> None:
    folder = changed("depth_anything_metric")
    change(folder)
    with pytest.raises(SourceError, match=message):
        open_source(f"hf:{folder}")


def test_tensors_that_no_depth_depends_on_may_be_missing(changed: Callable[[str], Path]) -> None:
    """The published MiDaS and DINOv2 checkpoints lack these."""
    for name in ("dpt", "depth_pro"):
        folder = changed(name)
        one = picture(0, 40, 56)
        expected = open_source(f"hf:{folder}").label([one])[0].depth_HW
        unused = "neck.fusion_stage.layers.0.residual_layer1"
        _without(unused if name == "dpt" else "fusion_stage.intermediate.0.residual_layer1")(folder)
        np.testing.assert_array_equal(
            open_source(f"hf:{folder}").label([one])[0].depth_HW, expected
        )
    _without("fov_model")(folder)
    with pytest.raises(SourceError, match=r"lack .* fov_model"):
        open_source(f"hf:{folder}")


def test_depth_that_is_not_finite_is_refused(changed: Callable[[str], Path]) -> None:
    folder = changed("depth_anything_metric")
    _nan(folder)
    with pytest.raises(SourceError, match="seq/4: depth is NaN or infinite at 2240 of 2240"):
        open_source(f"hf:{folder}").label([picture(4, 40, 56)])


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# No front matter\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: apache-2.0\ntags: [depth]\n---\n# Title\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: amlr\n---\n", "other, amlr"),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: 7\n", "7"),
    ],
)
def test_the_licence_is_the_model_cards(
    card: str | None, licence: str | None, changed: Callable[[str], Path]
) -> None:
    folder = changed("glpn")
    if card is not None:
        (folder / "README.md").write_text(card, newline="")
    assert open_source(f"hf:{folder}").card.licence == licence


def test_the_version_is_that_of_the_weights_and_configs(changed: Callable[[str], Path]) -> None:
    folder = changed("depth_anything_metric")
    first = open_source(f"hf:{folder}").card.version
    moved = folder.rename(folder.with_name("moved"))
    assert open_source(f"hf:{moved}").card.version == first
    _config(max_depth=80)(moved)
    assert open_source(f"hf:{moved}").card.version != first


def test_the_version_of_a_model_of_the_hub_is_its_commit(
    changed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commit = changed("glpn"), "a" * 40
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    card = open_source("hf:org/name").card
    assert (card.source, card.version, card.licence) == ("hf:org/name", commit, "mit")
    _pickled(repo / "snapshots" / commit)
    with pytest.raises(SourceError, match="safetensors"):
        open_source("hf:org/name")
