"""Checkpoints: whole or not there, damaged ones reported, the disk may be full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import TEMPORARY, new_files, write_atomically
from clipdepth_plugin.training.checkpoint import Checkpoint, Checkpoints, State, read_checkpoint
from clipdepth_plugin.training.ema import Ema
from clipdepth_plugin.training.step import learning_rate


def make_checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model": {"head.weight": torch.full((3, 2), float(step))},
        "ema": {},
        "optimiser": {"head.weight|step": torch.tensor(float(step))},
        "rng": {"0|cpu": torch.arange(5, dtype=torch.uint8)},
        "best": {},
    }
    return Checkpoint(tensors, State(step=step, epoch=1, batch=2))


def no_room(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_half_way(path: Path) -> None:
    with new_files(path, TrainingError) as folder:
        (folder / "a").write_bytes(b"2")
        raise ZeroDivisionError


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=3).save(make_checkpoint(7))
    read = read_checkpoint(path)
    assert read.state == State(step=7, epoch=1, batch=2)
    for part, tensors in make_checkpoint(7).tensors.items():
        assert read.tensors[part].keys() == tensors.keys()
        for name, x in tensors.items():
            assert torch.equal(read.tensors[part][name], x)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        checkpoints.save(make_checkpoint(step))
    assert [path.name for path in checkpoints.paths()] == [
        "step-00000015.safetensors",
        "step-00000020.safetensors",
    ]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_a_damaged_newest_is_reported_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    before, newest = (checkpoints.save(make_checkpoint(step)) for step in (1, 2))
    newest.write_bytes(newest.read_bytes()[:-1] if content is None else content)
    with caplog.at_level(logging.ERROR):
        assert checkpoints.newest() == before
    assert f"{newest}: damaged" in caplog.text
    # What is set aside is neither counted nor read again, and may be written anew.
    assert checkpoints.paths() == [before]
    assert checkpoints.save(make_checkpoint(2)) == newest
    assert checkpoints.newest() == newest


@pytest.mark.parametrize("place", ["tensors", "state"])
def test_a_changed_byte_is_damage_too(tmp_path: Path, place: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    before, newest = (checkpoints.save(make_checkpoint(step)) for step in (1, 2))
    content = bytearray(newest.read_bytes())
    if place == "tensors":
        content[-1] ^= 1
    else:
        at = content.index(b'\\"batch\\": 2')
        content[at : at + 12] = content[at : at + 12].replace(b"2", b"3")
    newest.write_bytes(content)
    with pytest.raises(TrainingError, match=r"step-00000002.*damaged.*sha256"):
        read_checkpoint(newest)
    assert checkpoints.newest() == before


def test_no_checkpoint_is_no_error_but_only_damaged_ones_are(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none", keep=3)
    assert checkpoints.newest() is None
    checkpoints.save(make_checkpoint(1)).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"every checkpoint is damaged.*step-00000001"):
        checkpoints.newest()


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = checkpoints.save(make_checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(TrainingError, match=r"step-00000002.*No space left.*is untouched"):
            checkpoints.save(make_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert checkpoints.newest() == old
    assert read_checkpoint(old).state.step == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    kept = checkpoints.save(make_checkpoint(1))
    left = tmp_path / f"{TEMPORARY}abcd"
    left.write_bytes(b"half")
    assert checkpoints.newest() == kept
    assert not left.exists()


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(TrainingError, match="No space left"):
            write_atomically(path, b"new", TrainingError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new", TrainingError)
    assert path.read_bytes() == b"new"


def test_an_error_while_files_are_written_leaves_the_old_ones(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "folder"
    with pytest.raises(ZeroDivisionError):
        fail_half_way(folder)
    assert not list(tmp_path.iterdir())
    with new_files(folder, TrainingError) as new:
        (new / "a").write_bytes(b"1")
    with pytest.raises(ZeroDivisionError):
        fail_half_way(folder)
    assert (folder / "a").read_bytes() == b"1"
    with new_files(folder, TrainingError) as new:
        (new / "a").write_bytes(b"3")
    assert (folder / "a").read_bytes() == b"3"
    assert list(folder.iterdir()) == [folder / "a"]


def test_the_schedule_warms_up_and_ends_where_it_should() -> None:
    rates = [learning_rate(s, 200, peak=1e-4, final=1e-6, warmup=0.05) for s in range(200)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[9] == rates[10] == 1e-4
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[105] == pytest.approx(0.5 * (1e-4 + 1e-6), rel=0.02)
    assert learning_rate(0, 1, peak=1.0, final=0.1, warmup=0.0) == 1.0


def test_the_average_follows_and_is_swapped_in_and_out() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(2))
    ema = Ema(model, decay=0.9)
    expected = {name: x.detach().clone() for name, x in model.state_dict().items()}
    for step in (1, 2, 100):
        kept = min(0.9, (1 + step) / (10 + step))  # it warms up
        with torch.no_grad():
            linear.weight.add_(1.0)
            model(torch.randn(4, 2))
        ema.update(step)
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                expected[name] = kept * expected[name] + (1 - kept) * x
    raw = {name: x.clone() for name, x in model.state_dict().items()}
    with ema.applied():
        inside = {name: x.clone() for name, x in model.state_dict().items()}
    torch.testing.assert_close(inside["0.weight"], expected["0.weight"])
    torch.testing.assert_close(inside["1.running_mean"], expected["1.running_mean"])
    assert inside["1.num_batches_tracked"] == 3
    for name, x in model.state_dict().items():
        assert torch.equal(x, raw[name])
