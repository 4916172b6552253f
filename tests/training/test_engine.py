"""Training runs of a few steps: what they write, what stops them, what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import ConfigError, DataError, TrainingError
from clipdepth_plugin.plugin.depth_plugin import attach
from clipdepth_plugin.training import session, step
from clipdepth_plugin.training.batches import camera_scale
from clipdepth_plugin.training.checkpoint import read_checkpoint
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.progress import Progress
from clipdepth_plugin.training.run_folder import read_log
from clipdepth_plugin.training.tower import load_tower

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []
        self.doings: list[tuple[str, int, int]] = []

    def doing(self, what: str, done: int, total: int) -> None:
        self.doings.append((what, done, total))

    def step(self, progress: Progress) -> None:
        self.steps.append(progress)


def test_a_run_writes_all_it_promises(tiny: TinyRuns) -> None:
    heard = Heard()
    logging = {"every": 1, "pictures": 2, "tensorboard": True}
    result = train(tiny.config("run", logging=logging, validate_every=3), reporter=heard)
    folder = Path(tiny.folder / "run")
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["optimiser"] == {"lr": 1e-2, "weight_decay": 0.01, "betas": [0.9, 0.999]}
    assert list(tiny.losses("run")) == [1, 2, 3, 4, 5, 6]
    kinds = {one["kind"] for one in read_log(folder / "log.jsonl")}
    assert kinds == {"train", "validation_raw", "validation_ema"}
    assert list((folder / "tensorboard").iterdir())
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == ["step-00000003.png", "step-00000006.png"]
    with Image.open(folder / "pictures" / pictures[0]) as grid:
        assert grid.width > grid.height > 600  # two rows of four panels
    assert [one.step for one in heard.steps] == [1, 2, 3, 4, 5, 6]
    assert heard.steps[-1].total == 6
    assert heard.steps[-1].images_per_second > 0
    assert heard.steps[2].abs_rel is not None
    assert result.steps == 6
    assert result.head == folder / "head"


def test_the_head_says_where_it_comes_from_and_gives_the_measured_depth(tiny: TinyRuns) -> None:
    provenance = {"license": "MIT", "data": ["planes (CC0)"], "notes": "A test."}
    result = train(tiny.config("run", provenance=provenance))
    head = DepthHead.from_pretrained(result.head)
    kept = head.config.provenance
    assert (kept.tower, kept.license, kept.data) == (tiny.host, "MIT", ("planes (CC0)",))
    assert kept.notes.startswith("A test.")
    assert f"abs_rel {result.abs_rel:.4f}" in kept.notes
    assert "A test." in (result.head / "README.md").read_text()
    host = load_host(tiny.host).model
    with attach(host, head) as plugin:  # its hashes fit this tower
        assert plugin(torch.zeros(1, 3, 28, 28)).shape == (1, 1, 28, 28)


def test_the_better_of_raw_and_averaged_weights_is_kept(tiny: TinyRuns) -> None:
    result = train(tiny.config("run", validate_every=2, ema=0.5))
    measured = [
        (one["abs_rel"], one["kind"], one["step"])
        for one in read_log(tiny.folder / "run" / "log.jsonl")
        if one["kind"] != "train"
    ]
    best, kind, _ = min(measured)
    assert result.abs_rel == best
    assert kind == f"validation_{result.weights}"


@pytest.mark.parametrize("preset", ["fast", "guided"])
def test_the_default_loss_trains_every_preset(tiny: TinyRuns, preset: str) -> None:
    """Of the dual-path ones all other tests are."""
    options = {"channels": [8, 8, 8], "film_hidden": 8}
    train(tiny.config("run", steps=1, head={"preset": preset, "options": options}))
    assert math.isfinite(tiny.losses("run")[1])


@pytest.mark.parametrize(("decay", "kept"), [(None, "model"), (0.9, "ema")])
def test_the_head_has_the_weights_that_it_says(
    tiny: TinyRuns, decay: float | None, kept: str
) -> None:
    tree = tiny.tree("run")
    result = train(tiny.config("run", data={"train": tree["data"]["train"]}, ema=decay))
    assert result.abs_rel is None
    assert result.weights == ("ema" if decay else "raw")
    newest = read_checkpoint(tiny.folder / "run/checkpoints/step-00000006.safetensors")
    head = load_file(result.head / "model.safetensors")
    weights = {part: newest.tensors[part] for part in ("model", kept)}
    assert all(torch.equal(x, weights[kept][f"head.{name}"]) for name, x in head.items())
    other = decay is not None
    assert other == any(not torch.equal(x, weights["model"][n]) for n, x in weights[kept].items())


def test_training_lowers_the_loss_and_leaves_the_tower_alone(tiny: TinyRuns) -> None:
    train(tiny.config("run", steps=60, batch_size=4, ema=None))
    losses = tiny.losses("run")
    assert sum(list(losses.values())[-5:]) / 5 < 0.6 * losses[1]
    weights = load_file(tiny.folder / "run" / "head" / "model.safetensors")
    assert not any("embeddings" in name for name in weights)


def test_tiny_gradients_count_as_zero_in_training_alone(tiny: TinyRuns) -> None:
    """A processor computes with denormal numbers many times slower."""

    class Watching(Heard):
        def step(self, progress: Progress) -> None:
            super().step(progress)
            products.append((torch.tensor(1e-40) * 1).item())

    products: list[float] = []
    train(tiny.config("run"), reporter=Watching())
    assert set(products) == {0.0}
    assert (torch.tensor(1e-40) * 1).item() > 0


def test_a_saved_head_is_trained_on(tiny: TinyRuns) -> None:
    first = train(tiny.config("first", steps=30))
    train(tiny.config("second", head={"init": str(first.head)}, optimiser={"lr": 1e-4}))
    assert tiny.losses("second")[1] < 0.8 * tiny.losses("first")[1]
    with pytest.raises(
        ConfigError, match=r"augment\.zoom: changes the focal length, which this head"
    ):
        train(tiny.config("third", head={"init": str(first.head)}, augment={"zoom": [1.0, 1.5]}))


def test_a_canonical_camera_scales_the_target_and_not_the_metric(tiny: TinyRuns) -> None:
    focal = 40 * math.sqrt(28 / 40 * 28 / 32)  # of these pictures in the tower's input
    for name, canonical in (("none", None), ("same", focal), ("long", 10 * focal)):
        options = {**tiny.exact_head, "canonical_focal": canonical}
        train(tiny.config(name, head={"options": options}, steps=1, augment=None))
    losses = {name: tiny.losses(name)[1] for name in ("none", "same", "long")}
    assert losses["same"] == pytest.approx(losses["none"], rel=1e-5)
    assert losses["long"] > 1.1 * losses["none"]
    one, other = (
        read_log(tiny.folder / name / "log.jsonl")[-1]["abs_rel"] for name in ("none", "same")
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_a_canonical_camera_needs_to_know_the_true_one(tiny: TinyRuns) -> None:
    options = {**tiny.head, "canonical_focal": 30.0}
    unknown = torch.full((2, 4), torch.nan)
    with pytest.raises(TrainingError, match=r"needs every sample's intrinsics; b has none"):
        camera_scale(torch.cat([torch.ones(1, 4), unknown[:1]]), 30.0, ["a", "b"])
    assert torch.equal(camera_scale(unknown, None, ["a", "b"]), torch.ones(2))
    free = torch.tensor([True, False])
    known = torch.tensor([[torch.nan] * 4, [60.0, 60.0, 1.0, 1.0]])
    assert camera_scale(known, 30.0, ["a", "b"], free).tolist() == [1.0, 0.5]
    with pytest.raises(TrainingError, match=r"b has none"):
        camera_scale(unknown, 30.0, ["a", "b"], free)
    assert train(tiny.config("run", head={"options": options})).steps == 6


def test_accumulated_batches_are_averaged(tiny: TinyRuns) -> None:
    # Gradient matching at one scale has as many pairs in each picture: its mean is additive.
    loss = {"silog": 0, "ssim": 0, "gradient": 1.0, "gradient_scales": 1, "auxiliary": []}
    options = {**tiny.exact_head, "auxiliary": 0}
    common = {"loss": loss, "head": {"options": options}, "augment": None, "clip": None}
    train(tiny.config("whole", batch_size=4, **common))
    train(tiny.config("parts", batch_size=4, gradient_accumulation=2, **common))
    whole, parts = tiny.losses("whole"), tiny.losses("parts")
    assert parts[1] == pytest.approx(whole[1], rel=1e-2)
    assert parts.keys() == whole.keys()


def test_the_tower_may_be_given_smaller_pictures(tiny: TinyRuns) -> None:
    config = tiny.config("small", input_size=[14, 21], output_size=None)
    assert load_tower(config).preprocessing.size == (14, 21)
    train(config)
    assert len(tiny.losses("small")) == 6


def test_bfloat16_trains(tiny: TinyRuns) -> None:
    train(tiny.config("run", precision="bf16-emulated", ema=None))
    assert all(math.isfinite(loss) for loss in tiny.losses("run").values())


def test_a_loss_that_is_not_finite_stops_the_run_with_the_files_names(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = step.Stepper._backward

    def poisoned(self: Any, batch: Any, count: int, where: str) -> Any:
        if where.startswith("step 4 "):
            batch.depth_B1HW[0] = torch.inf
            seen.extend(batch.names)
        return forward(self, batch, count, where)

    seen: list[str] = []
    monkeypatch.setattr(step.Stepper, "_backward", poisoned)
    with pytest.raises(TrainingError, match=r"step 4 .*the loss is (nan|inf)") as caught:
        train(tiny.config("run"))
    assert len(seen) == 2
    assert all(name in str(caught.value) for name in seen)
    # The checkpoint before is whole, and the run resumes from it.
    assert list(tiny.losses("run")) == [1, 2, 3]
    monkeypatch.setattr(step.Stepper, "_backward", forward)
    assert train(tiny.config("run"), resume=True).steps == 6


def test_a_gradient_that_is_not_finite_stops_it_too(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(torch.nan))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(torch.nan))
    with pytest.raises(TrainingError, match=r"step 1 .*gradient's norm is nan.*planes/train/"):
        train(tiny.config("run"))


def test_an_overflow_that_does_not_end_stops_it(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 skips steps that overflow, a few in a row: its loss scale is halved each time."""
    monkeypatch.setattr(step, "OVERFLOWS", 3)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(torch.inf))
    init = step.Stepper.__init__

    def as_in_fp16(self: step.Stepper, *arguments: Any) -> None:
        init(self, *arguments)
        self._may_overflow = True

    monkeypatch.setattr(step.Stepper, "__init__", as_in_fp16)
    with pytest.raises(TrainingError, match=r"step 4 .*gradient's norm is inf"):
        train(tiny.config("run"))


def test_weights_that_diverge_are_no_head_and_leave_checkpoints(
    tiny: TinyRuns, caplog: pytest.LogCaptureFixture
) -> None:
    diverging: dict[str, Any] = {
        "optimiser": {"lr": 1e10, "weight_decay": 0.0},
        "schedule": {"warmup": 0.0},
        "clip": None,
        "ema": None,
    }
    with pytest.raises(TrainingError, match="no validation gave a finite AbsRel"):
        train(tiny.config("run", validate_every=1, checkpoint_every=1, steps=1, **diverging))
    assert "the weights have diverged" in caplog.text
    assert not (tiny.folder / "run" / "head").exists()
    assert list((tiny.folder / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"batch_size": 8}, "fewer samples than batch_size = 8"),
        ({"host": "no-such-folder"}, "neither a known scheme nor a folder"),
        ({"head": {"options": {"semantic_levels": [9, 1], "channels": [8, 4]}}}, "level"),
        ({"head": {"init": "no-such-head"}}, "no-such-head"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tiny: TinyRuns, changes: dict[str, Any], message: str
) -> None:
    if "init" in changes.get("head", {}):
        changes = {"head": {"init": str(tiny.folder / "no-such-head")}}
    with pytest.raises(ValueError, match=message):
        train(tiny.config("run", **changes))
    assert not (tiny.folder / "run").exists()


def test_a_finished_run_is_not_overwritten(tiny: TinyRuns) -> None:
    train(tiny.config("run"))
    with pytest.raises(TrainingError, match=r"holds a run already.*--resume"):
        train(tiny.config("run"))
    with pytest.raises(TrainingError, match=r"started with another optimiser, seed"):
        train(tiny.config("run", seed=1, optimiser={"lr": 1.0}), resume=True)


def test_data_and_paths_are_checked_before_the_tower_is_loaded(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_DATA", raising=False)
    monkeypatch.setattr(session, "load_tower", lambda _: pytest.fail("loaded"))
    for changes in (
        {"data": {"train": [{"format": "rgbd", "root": "$NO_SUCH_DATA/x"}]}},
        {"cache": {"folder": "$NO_SUCH_DATA/x"}},
    ):
        with pytest.raises(DataError, match="NO_SUCH_DATA is not set"):
            train(tiny.config("run", **changes))
    data = {"train": [{"format": "rgbd", "root": str(tiny.folder / "nowhere")}]}
    with pytest.raises(DataError, match="nowhere: no such folder"):
        train(tiny.config("run", data=data))


def test_the_log_is_json_with_every_term(tiny: TinyRuns) -> None:
    train(tiny.config("run"))
    lines = (tiny.folder / "run" / "log.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    terms = {"loss", "silog", "ssim", "aux0", "aux1", "learning_rate", "gradient_norm"}
    assert terms <= first.keys()
    weighted = 0.5 * first["silog"] + 0.5 * first["ssim"] + 0.1 * first["aux0"]
    assert first["loss"] == pytest.approx(weighted + 0.05 * first["aux1"], rel=1e-5)
