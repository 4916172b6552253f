"""Training configs: files, overrides, and errors that name the field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from clipdepth_plugin.config import PRESETS, HeadConfig
from clipdepth_plugin.errors import ConfigError
from clipdepth_plugin.training.config_file import check_config, dump_config, load_config, with_cache

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

STREAM = "{format: webdataset, root: x.tar}"
NOT_VALIDATED = ("--data.validation", "[]", "--validate_every", "null")
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def tree(tiny: TinyRuns) -> dict[str, Any]:
    return tiny.tree("run")


@pytest.fixture
def file(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["--optimiser.lr", "3e-4"], "optimiser.lr", 3e-4),
        (["--optimiser.lr=3e-4"], "optimiser.lr", 3e-4),
        (["--batch_size", "8"], "batch_size", 8),
        (["--augment", "null"], "augment", None),
        (["--precision", "no"], "precision", "no"),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--data.train.0.root", "/mine"], "data.train.0.root", "/mine"),
        (["--output_size", "[24, 32]"], "output_size", (24, 32)),
        (["--cache.folder", "tokens", "--cache.views", "3"], "cache.views", 3),
        (["--head.options.norm", "group"], "head.options.norm", "group"),
        (["--steps", "null", "--epochs", "2"], "epochs", 2),
        (["--loss.auxiliary", "[]"], "loss.auxiliary", ()),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_overrides_reach_any_field(
    file: Path, overrides: list[str], field: str, value: object
) -> None:
    found: Any = load_config(file, overrides)
    for name in field.split("."):
        if isinstance(found, dict):
            found = found[name]
        else:
            found = found[int(name)] if name.isdecimal() else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--optimizer.lr", "1"], r"optimizer: no such field; did you mean optimiser\?"),
        (["--optimiser.lrr", "1"], r"optimiser\.lrr: no such field; did you mean lr\?"),
        (["--data.train.0.rot", "x"], r"data\.train\.0\.rot: no such field; did you mean root\?"),
        (["--optimiser.lr", "fast"], r"optimiser\.lr: .*number.*'fast'"),
        (["--optimiser.lr", "-1"], r"optimiser\.lr: .*greater than 0.*-1"),
        (["--batch_size", "2.5"], r"batch_size: .*integer"),
        (["--host", "7"], r"host: .*string"),
        (["--head.options.width", "7"], r"head: options\.width: is set by the run"),
        (["--head.options.channel", "[8]"], r"head: options\.channel: Extra"),
        (["--head.options.norm", "layer"], r"head: options\.norm"),
        (["--head.init", "a-head"], r"head: init: a saved head has its own config"),
        (["--epochs", "3"], r"epochs, steps: .*set one to null"),
        (["--gradient_accumulation", "3"], r"batch_size: 2 can't be split"),
        (["--data.train.5.root", "x"], r"'5' is no entry of a list of 1"),
        (["--host.name", "x"], r"host has no fields"),
        (["--batch_size"], r"--batch_size: needs a value"),
        (["--batch_size", "--seed", "3"], r"--batch_size: needs a value"),
        (["batch_size", "3"], r"'batch_size': expected --field value"),
        (["--seed", "[1"], r"--seed \[1: the value is not valid YAML"),
        (["--data.train", "[]"], r"data\.train: .*at least 1"),
        (["--augment.zoom", "[1.0, 1.5]"], r"augment\.zoom: changes the focal length"),
        (
            ["--data.train.0.augment", "{zoom: [1.0, 2.0]}"],
            r"data\.train\.0\.augment\.zoom: changes the focal length",
        ),
        (
            ["--data.train.0.augment", "{flip: 0.5}", "--augment", "null"],
            r"data\.train\.0\.augment: augment is null, so nothing is augmented",
        ),
        (
            ["--data.validation.0", "{format: rgbd, root: x, scale_share: 0}"],
            r"data: validation\.0\.scale_share: does nothing",
        ),
        (["--data.train.0.share", "1"], r"train\.0\.share: weighs a set against the others"),
        (["--data.validation.0.share", "1"], r"validation\.0\.share: does nothing"),
        (
            ["--data.train", "[{format: rgbd, root: x, share: 1}, {format: rgbd, root: y}]"],
            r"data: train: share: must be given of all sets or of none, y has none",
        ),
        (["--data.train.0.scale_share", "0"], r"train: every set has scale_share: 0"),
        (["--data.train.0.scale_share", "1.5"], r"train\.0\.scale_share: "),
        (
            ["--data.validation.0", "{format: rgbd, root: x, augment: {}}"],
            r"data: validation\.0\.augment: validation data is not augmented",
        ),
        (["--cache.dtype", "float32"], r"cache\.folder: must be given"),
        (
            ["--loss.auxiliary", "[1, 1, 1]"],
            r"loss\.auxiliary: weighs 3 auxiliary outputs, this head has 2",
        ),
        (["--loss.confidence", "1"], r"loss\.confidence: is 1, head\.options\.confidence is False"),
        (["--head.options.confidence", "true"], r"loss\.confidence: is 0, .* True: a head that"),
        (["--output_size", "[5, 80]"], r"loss\.ssim: needs maps larger than 5 pixels.*\(5, 80\)"),
        (
            [
                "--data.train.0",
                STREAM,
                *NOT_VALIDATED,
                "--steps",
                "null",
            ],
            r"steps: a stream has no length: say how long",
        ),
        (
            [
                "--data.train.0",
                STREAM,
                *NOT_VALIDATED,
                "--cache.folder",
                "x",
            ],
            r"cache: a stream's samples have no fixed place",
        ),
        (
            ["--data.train", f"[{STREAM}, {{format: rgbd, root: x}}]"],
            r"data: train: streams .* can't be mixed",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_mistakes_are_errors_that_name_the_field(
    file: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file, overrides)


def test_all_mistakes_are_named_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["--seed", "x", "--ema", "2", "--hst", "demo"])
    assert all(f"\n  {field}: " in str(caught.value) for field in ("seed", "ema", "hst"))


@pytest.mark.parametrize("content", ["", "- a\n", "a: [", "\0"])
def test_files_that_are_no_config(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("changes", [{}, {"head": {"init": "folder"}}, {"cache": {"folder": "x"}}])
def test_the_stored_config_is_read_back_as_it_was(
    tmp_path: Path, tree: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = check_config({**tree, **changes}, "test")
    path = tmp_path / "stored.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_loss_fits_every_preset(
    tree: dict[str, Any], tmp_path: Path, preset: str
) -> None:
    config = check_config({**tree, "head": {"preset": preset}}, "test")
    head = config.head.config()
    assert head is not None
    weights = (0.1, 0.05)[: head.auxiliary]
    assert config.loss_for(head, None).auxiliary == weights
    path = tmp_path / "stored.yaml"
    path.write_text(dump_config(config))
    assert load_config(path).loss_for(head, None).auxiliary == weights


def test_a_head_with_fewer_auxiliary_outputs_takes_the_first_default_weights(
    tree: dict[str, Any],
) -> None:
    options = {**tree["head"]["options"], "auxiliary": 1}
    config = check_config({**tree, "head": {"options": options}}, "test")
    head = config.head.config()
    assert head is not None
    assert config.loss_for(head, None).auxiliary == (0.1,)


def test_the_defaults_are_the_published_recipe(tree: dict[str, Any]) -> None:
    fields = ("run", "host", "data")
    config = check_config({name: tree[name] for name in fields}, "test")
    assert (config.optimiser.lr, config.optimiser.weight_decay) == (1e-4, 0.01)
    assert (config.schedule.warmup, config.schedule.final_lr) == (0.05, 1e-6)
    assert (config.epochs, config.batch_size, config.clip, config.ema) == (20, 32, 1.0, 0.996)
    assert config.precision == "auto"
    assert config.head.preset == "spaceclip"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_ship_are_right_and_say_what_to_expect(path: Path) -> None:
    load_config(path)
    head = path.read_text().split("\nrun:")[0].lower()
    assert f"clipdepth train configs/{path.name}" in head
    assert "expected time" in head
    assert "score" in head


@pytest.mark.parametrize("name", ["spaceclip_nyu.yaml", "spaceclip_kitti.yaml"])
def test_the_recipes_are_the_defaults_written_out(name: str) -> None:
    written = yaml.safe_load((CONFIGS / name).read_text())
    config = load_config(CONFIGS / name)
    plain = {key: written[key] for key in ("run", "host", "data")}
    defaults = check_config(plain, "defaults")
    for field in ("augment", "loss", "optimiser", "schedule", "epochs", "batch_size", "ema"):
        assert getattr(config, field) == getattr(defaults, field), field


def test_the_demo_head_is_one_that_can_be_made() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    HeadConfig(width=384, preset=config.head.preset, **config.head.options)
    assert all(one.root.startswith("$CLIPDEPTH_DATA/") for one in config.data.train)


def test_the_cache_is_turned_on_beside_the_run(tree: dict[str, Any]) -> None:
    config = with_cache(check_config(tree, "test"))
    assert config.cache is not None
    assert config.cache.folder == str(Path(config.run).parent / "token-cache")
    assert with_cache(config) is config
    stream = {"train": [yaml.safe_load(STREAM)]}
    tree = {**tree, "validate_every": None}
    with pytest.raises(ConfigError, match="cache: a stream's samples have no fixed place"):
        with_cache(check_config({**tree, "data": stream}, "test"))
