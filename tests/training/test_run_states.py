"""Whatever state a run's folder is in: resuming says what is lost, and empties nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipdepth_plugin.errors import ClipDepthError, TrainingError
from clipdepth_plugin.files.locks import locked_folder
from clipdepth_plugin.training import engine, session
from clipdepth_plugin.training.checkpoint import Checkpoints, read_checkpoint
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import RunFolder, read_log
from clipdepth_plugin.training.sealed import seal

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_host: str, tiny_data: str
) -> tuple[Path, dict[str, Any]]:
    """The folder and the config's fields of a run of six steps, whose best head is not its last."""
    from tests.training.conftest import HEAD, TinyRuns

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        runs = TinyRuns(tmp_path_factory.mktemp("runs"), tiny_host, tiny_data, HEAD, HEAD)
        tree = runs.tree("run", validate_every=1, optimiser={"lr": 0.5}, ema=None)
        train(runs.config("run", **tree))
    return runs.folder / "run", tree


@pytest.fixture
def run(finished: tuple[Path, dict[str, Any]], tiny: TinyRuns) -> tuple[Path, dict[str, Any]]:
    """A copy of it, and its fields."""
    folder, tree = finished
    shutil.copytree(folder, tiny.folder / "run")
    return tiny.folder / "run", {**tree, "run": str(tiny.folder / "run")}


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def in_turn(*changes: Change) -> Change:
    def change(run: Path) -> None:
        for one in changes:
            one(run)

    return change


def steps(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def truncate_all(run: Path) -> None:
    for path in steps(run):
        path.write_bytes(path.read_bytes()[:-1])


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a checkpoint's state, and seals it again."""
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    result = change(state)
    path.write_bytes(seal(load_file(path), state if result is None else result))


def reseal_newest(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda run: reseal(steps(run)[-1], change)


def set_line(number: int, text: bytes) -> Change:
    def change(run: Path) -> None:
        log = run / "log.jsonl"
        lines = log.read_bytes().splitlines()
        lines[number] = text
        log.write_bytes(b"\n".join(lines) + b"\n")

    return change


def of_another_run(run: Path) -> None:
    reseal(steps(run)[-1], lambda state: state.update(config="0" * 64))


REFUSED: dict[str, tuple[Change, str]] = {
    "all damaged": (truncate_all, r"every checkpoint is damaged \(step-00000006"),
    "none": (lambda run: shutil.rmtree(run / "checkpoints"), r"log.jsonl has 6 steps, but .* no"),
    "none, and no log": (
        in_turn(
            lambda run: shutil.rmtree(run / "checkpoints"),
            lambda run: (run / "log.jsonl").unlink(),
        ),
        r"head/ is there, but .* no checkpoint",
    ),
    "all under other names": (
        lambda run: [path.rename(path.with_suffix(".old")) for path in steps(run)],
        r"log.jsonl has 6 steps, but .* no checkpoint",
    ),
    "newer format": (
        reseal_newest(lambda state: state.update(format=99)),
        r"step-00000006.* format 99, this release reads \d; go on with the release",
    ),
    "another run's": (of_another_run, "checkpoint of step 6 is of a run with another config"),
    "may not be read": (
        lambda run: (run / "checkpoints" / "step-00000009.safetensors").mkdir(),
        r"step-00000009\S+: can't be read \(Is a directory\)",
    ),
    "no config": (lambda run: (run / "config.yaml").unlink(), r"but no config.yaml .*put it back"),
    "a config of other types": (
        lambda run: (run / "config.yaml").write_text("steps: [1]\nhost: 3\n"),
        r"config .*config.yaml",
    ),
    "an empty config": (lambda run: (run / "config.yaml").write_bytes(b""), r"config.yaml"),
    "a log line of text": (set_line(2, b"hello"), r"log.jsonl, line 3.* take this line out"),
    "a log line without a step": (set_line(2, b'{"kind": "train"}'), r"line 3: not the record"),
    "a log line that is a number": (set_line(0, b"5"), r"line 1: not the record"),
    "a deep log line": (set_line(0, b"[" * 5000), r"line 1.* take this line out"),
    "a step that is NaN": (set_line(0, b'{"step": NaN}'), r"line 1: not the record"),
    "a log of bytes": (set_line(0, b"\xff\xfe\0"), r"line 1 .*not UTF-8"),
    "a folder for a log": (
        in_turn(lambda run: (run / "log.jsonl").unlink(), lambda run: (run / "log.jsonl").mkdir()),
        r"log.jsonl: can't be read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_every_time_and_stays(
    run: tuple[Path, dict[str, Any]], tiny: TinyRuns, name: str
) -> None:
    folder, tree = run
    change, message = REFUSED[name]
    change(folder)
    before = content(folder)
    for _ in range(2):
        with pytest.raises(ClipDepthError, match=rf"(?s){message}"):
            train(tiny.config("run", **tree), resume=True)
        with pytest.raises(TrainingError, match="holds a run already"):
            train(tiny.config("run", **tree))
        assert content(folder) == before


def replaced(**values: Any) -> Change:
    return reseal_newest(lambda state: state.update(values))


def flip(run: Path) -> None:
    path = steps(run)[-1]
    data = bytearray(path.read_bytes())
    data[-9] ^= 64
    path.write_bytes(data)


DAMAGE: dict[str, Change] = {
    "a flipped bit": flip,
    "empty": lambda run: steps(run)[-1].write_bytes(b""),
    "another's content": lambda run: shutil.copy(steps(run)[0], steps(run)[-1]),
    "a plain safetensors file": lambda run: save_file({"a": torch.ones(1)}, steps(run)[-1]),
    "no fields": reseal_newest(lambda _: ["format", 4]),
    "no epoch": reseal_newest(lambda state: (state.pop("epoch"), None)[1]),
    "a negative batch": replaced(batch=-1),
    "a huge batch": replaced(batch=10**30),
    "a batch of text": replaced(batch="two"),
    "a fraction of a step": replaced(step=6.5),
    "weights of another kind": replaced(best={"abs_rel": 0.1, "weights": "best", "step": 2}),
    "a best of another type": replaced(best=[1, 2]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_one_damaged_checkpoint_is_named_and_set_aside_and_remembered(
    run: tuple[Path, dict[str, Any]], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run[0]
    DAMAGE[name](folder)
    before = content(folder)
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    assert checkpoints.newest() == steps(folder)[-1]
    assert "step-00000006.safetensors: damaged" in caplog.text
    aside = folder / "checkpoints" / "corrupt-step-00000006.safetensors"
    assert aside.read_bytes() == before["checkpoints/step-00000006.safetensors"]
    caplog.clear()
    assert checkpoints.newest() is not None
    assert f"set aside as damaged: {aside.name}" in caplog.text


@pytest.mark.parametrize("lost", ["folder", "weights", "config", "half of the weights"])
def test_a_lost_head_is_written_again(
    run: tuple[Path, dict[str, Any]], tiny: TinyRuns, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, tree = run
    state = read_checkpoint(steps(folder)[-1]).state
    assert state.best.step < state.step  # else any checkpoint's weights would do
    head = folder / "head"
    before = content(head)
    ways: dict[str, Callable[[], object]] = {
        "folder": lambda: shutil.rmtree(head),
        "weights": (head / "model.safetensors").unlink,
        "config": (head / "config.json").unlink,
        "half of the weights": lambda: os.truncate(head / "model.safetensors", 500),
    }
    ways[lost]()
    with caplog.at_level(logging.WARNING):
        train(tiny.config("run", **tree), resume=True)
    assert "head is missing or damaged: written again" in caplog.text
    assert content(head) == before


def test_two_trainers_do_not_share_a_folder(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside a new run, nor beside a resumed one; the second leaves everything alone."""
    config = tiny.config("run")
    with locked_folder(Path(config.run), TrainingError, "run folder"):
        for resume in (False, True):
            with pytest.raises(TrainingError, match=f"process {os.getpid()} on .* uses this run"):
                train(config, resume=resume)
    open_session, tried = session.open_session, []

    def second_in_between(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(TrainingError, match="uses this run folder now"):
            train(config)
        tried.append(1)
        return open_session(*arguments, **options)

    monkeypatch.setattr(engine, "open_session", second_in_between)
    assert train(config).steps == 6
    assert tried == [1]
    assert not list(Path(config.run).glob(".*"))


def test_a_run_that_could_not_begin_leaves_no_folder(tiny: TinyRuns) -> None:
    with pytest.raises(ClipDepthError):
        train(tiny.config("run", host="nowhere"))
    assert not (tiny.folder / "run").exists()


def test_a_cache_in_the_runs_own_folder_is_refused(tiny: TinyRuns) -> None:
    """It would wait for its own lock."""
    (tiny.folder / "link").symlink_to(tiny.folder / "run")
    config = tiny.config("run", cache={"folder": str(tiny.folder / "link")})
    with pytest.raises(TrainingError, match=r"cache\.folder: .* own folder"):
        train(config)


def test_a_log_without_its_last_line_break_keeps_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_the_fingerprint_ignores_what_may_change(tiny: TinyRuns) -> None:
    one = RunFolder(tiny.config("run")).fingerprint
    assert one == RunFolder(tiny.config("run", keep=7, workers=1)).fingerprint
    assert one != RunFolder(tiny.config("run", seed=7)).fingerprint


@pytest.mark.parametrize("part", ["model", "ema", "optimiser", "rng", "best"])
@pytest.mark.parametrize("how", ["gone", "of another shape"])
def test_a_sealed_checkpoint_of_other_tensors_is_refused(
    run: tuple[Path, dict[str, Any]], tiny: TinyRuns, part: str, how: str
) -> None:
    folder, tree = run
    newest = steps(folder)[-1]
    with safe_open(newest, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    tensors = {
        name: torch.ones(2, 3, 4) if how != "gone" and name.startswith(part) else x
        for name, x in load_file(newest).items()
        if how != "gone" or not name.startswith(part)
    }
    newest.write_bytes(seal(tensors, state))
    shutil.rmtree(folder / "head")
    if part == "ema" or (part, how) == ("rng", "gone"):  # this run has no average; dropout alone
        train(tiny.config("run", **tree), resume=True)
        return
    with pytest.raises(ClipDepthError):
        train(tiny.config("run", **tree), resume=True)
