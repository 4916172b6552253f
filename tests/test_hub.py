"""save_pretrained, from_pretrained, push_to_hub: whole, refused with the reason, never halved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipdepth_plugin import DepthHead, HeadConfig
from clipdepth_plugin.config import PRESETS, Activation, Preset, Provenance
from clipdepth_plugin.errors import HeadFileError
from tests.tiny.depth_heads import make_features


@pytest.fixture
def head() -> DepthHead:
    torch.manual_seed(0)
    provenance = Provenance(
        tower="open_clip:ViT-B-16/openai",
        tower_hashes={"float32": "00ff"},
        data=("NYU Depth V2",),
        license="Apache-2.0",
        notes="AbsRel 0.1 on something.",
    )
    return DepthHead(
        HeadConfig(
            width=16,
            channels=(8, 8, 8, 8),
            film_hidden=4,
            preset="spaceclip-middle",
            context="cls",
            activation="log",
            depth_range=(0.2, 5.0),
            provenance=provenance,
        )
    ).eval()


def test_round_trip(head: DepthHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path / "head")
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    modes = {path.stat().st_mode for path in (tmp_path / "head").iterdir()}
    assert len(modes) == 1  # whoever may read the config may read the weights
    loaded = DepthHead.from_pretrained(tmp_path / "head")
    assert loaded.config == head.config
    assert not loaded.training
    assert loaded.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(x, head.state_dict()[k]) for k, x in loaded.state_dict().items())


@pytest.mark.parametrize("activation", ["softplus", "log", "bins"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_same_depth_again(
    preset: Preset, activation: Activation, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"channels": (8,) * len(HeadConfig(width=16, preset=preset).channels)}
    torch.manual_seed(0)
    config = HeadConfig(
        width=16, preset=preset, activation=activation, confidence=True, film_hidden=4, **options
    )
    head = DepthHead(config).eval()
    features = make_features(config, (2, 3), batch=1)
    head.save_pretrained(tmp_path)
    loaded = DepthHead.from_pretrained(tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        maps = [one.forward_with_confidence(features, (20, 30)) for one in (head, loaded)]
    assert all(map(torch.equal, *maps))


def test_half_precision_file_loads_as_float32(head: DepthHead, tmp_path: Path) -> None:
    head.half().save_pretrained(tmp_path)
    loaded = DepthHead.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_model_card_says_what_a_user_needs(head: DepthHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "clipdepth-plugin"
    assert card.data.license == "apache-2.0"
    for said in (
        "open_clip:ViT-B-16/openai",
        "semantic [12, 9, 6, 3], structural [7, 5, 4]",
        "`cls`",
        "metres",
        "0.2 to 5 m",
        "NYU Depth V2",
        "AbsRel 0.1 on something.",
    ):
        assert said in card.text, said


def test_saving_again_replaces_weights_and_keeps_the_card(head: DepthHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("my own words")
    with torch.no_grad():
        head.get_parameter("decoder.readout.to_depth.weight").fill_(7.0)
    head.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"
    assert bool(
        (
            DepthHead.from_pretrained(tmp_path).get_parameter("decoder.readout.to_depth.weight")
            == 7.0
        ).all()
    )


def test_failed_save_leaves_what_was_there(
    head: DepthHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipdepth_plugin.weights.hub.save", full)
    with pytest.raises(HeadFileError, match=r"can't be written.*No space left"):
        head.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("edit", ["none", "none, other line ends", "words", "marker", "latin"])
def test_a_card_of_another_head_is_replaced_unless_edited(
    edit: str, head: DepthHead, tmp_path: Path
) -> None:
    """The old card would describe a head that is no longer there."""
    other = DepthHead(head.config.model_copy(update={"depth_range": (0.5, 77.0)}))
    other.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    written = card.read_text()
    assert "77 m" in written
    if edit == "none, other line ends":
        card.write_bytes(written.replace("\n", "\r\n").encode())
    elif edit == "words":
        card.write_text(written.replace("77 m", "77 m, mostly"))
    elif edit == "marker":
        card.write_text("\n".join(line for line in written.split("\n") if "sha256" not in line))
    elif edit == "latin":
        card.write_bytes("Tiefe für mich".encode("latin-1"))
    before = card.read_bytes()
    head.save_pretrained(tmp_path)
    if edit.startswith("none"):
        assert "0.2 to 5 m" in card.read_text()
        assert "77 m" not in card.read_text()
    else:
        assert card.read_bytes() == before


def test_failed_first_save_leaves_no_folder(
    head: DepthHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipdepth_plugin.weights.hub.save", full)
    (tmp_path / "empty").mkdir()
    for name in ("new", "new/inside", "empty"):
        with pytest.raises(HeadFileError, match=r"can't be written.*No space left"):
            head.save_pretrained(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00garbage")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"width": 16, ')


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _change_weight(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(folder / "model.safetensors")
    name = min(name for name, value in state.items() if value.is_floating_point())
    save_file({**state, name: change(state[name])}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "model.safetensors: missing, truncated or no safetensors file"),
        (_garbage, "model.safetensors: missing, truncated or no safetensors file"),
        (_no_weights, "model.safetensors: missing, truncated or no safetensors file"),
        (_no_config, "no config.json there"),
        (_cut_config, "config.json is not valid JSON"),
        (lambda f: _edit(f, nosuch=1), "not the config of a depth head"),
        (lambda f: _edit(f, preset=["fast"]), "not the config of a depth head"),
        (lambda f: _edit(f, width=32), r"of another shape: .*\(expected"),
        (lambda f: _edit(f, film=False), "unexpected: decoder.semantic.film.0"),
        (lambda f: _edit(f, auxiliary=0), "unexpected: decoder.auxiliary.0"),
    ],
    ids=[
        "cut",
        "garbage",
        "no-weights",
        "no-config",
        "cut-config",
        "field",
        "preset",
        "width",
        "film",
        "aux",
    ],
)
def test_damaged_folder(
    damage: Callable[[Path], None], message: str, head: DepthHead, tmp_path: Path
) -> None:
    head.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(HeadFileError, match=message):
        DepthHead.from_pretrained(tmp_path)


def test_a_head_saved_before_a_field_was_there_is_what_it_was(tmp_path: Path) -> None:
    """Not what its preset gives now; a config that a user wrote takes the preset's."""
    options: dict[str, Any] = {"width": 16, "channels": (8, 6, 4), "preset": "guided"}
    head = DepthHead(HeadConfig(**options, join_kernel=3)).eval()
    head.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["join_kernel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert DepthHead.from_pretrained(tmp_path).config == head.config
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(HeadFileError, match=r"guidance.join.conv.weight .*\(expected"):
        DepthHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "3", "true"])
def test_a_config_that_is_no_object(text: str, head: DepthHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HeadFileError, match="is not the config of a depth head"):
        DepthHead.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to(torch.int64), r"not of floats: decoder\..* torch\.int64"),
        (lambda x: x.to(torch.bool), r"not of floats: decoder\..* torch\.bool"),
        (lambda x: x.fill_(torch.nan), r"not finite \(NaN or infinite\): decoder\."),
        (lambda x: x.fill_(torch.inf).half(), r"not finite \(NaN or infinite\): decoder\."),
    ],
    ids=["int", "bool", "nan", "inf"],
)
def test_weights_that_are_no_numbers(
    change: Callable[[Tensor], Tensor], message: str, head: DepthHead, tmp_path: Path
) -> None:
    head.save_pretrained(tmp_path)
    _change_weight(tmp_path, change)
    with pytest.raises(HeadFileError, match=message):
        DepthHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder/here", "nobody/nothing", "./nowhere"])
def test_no_such_head(source: str) -> None:
    with pytest.raises(HeadFileError, match=source):
        DepthHead.from_pretrained(source)


def test_a_head_keeps_its_own_config(head: DepthHead, tmp_path: Path) -> None:
    with pytest.raises(HeadFileError, match="own config"):
        head.save_pretrained(tmp_path / "x", config={})
    assert not (tmp_path / "x").exists()


def test_push_to_hub_uploads_a_whole_head(head: DepthHead, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            uploaded[repo_id] = DepthHead.from_pretrained(folder_path).config
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert head.push_to_hub("me/head") == "https://hub/commit"
    assert uploaded == {"me/head": head.config}


def test_loads_from_the_hub_cache(
    head: DepthHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id resolves file by file, as the hub client gives them."""
    head.save_pretrained(tmp_path)

    def download(repo_id: str, filename: str, **options: Any) -> str:
        assert (repo_id, options) == ("me/head", {"revision": "v1"})
        return str(tmp_path / filename)

    monkeypatch.setattr("clipdepth_plugin.weights.hub.hf_hub_download", download)
    assert DepthHead.from_pretrained("me/head", revision="v1").config == head.config
    with pytest.raises(HeadFileError, match="does not take dtype"):
        DepthHead.from_pretrained("me/head", dtype=torch.float16)
