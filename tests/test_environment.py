"""The environment of a measurement; what can't be read is None."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

from clipdepth_plugin import environment
from clipdepth_plugin.environment import (
    Environment,
    cpu_name,
    describe_environment,
    read_commit,
)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_of_a_run_on_the_cpu() -> None:
    found = describe_environment(["clipdepth", "bench"], "cpu", "bfloat16")
    assert found.command == ("clipdepth", "bench")
    assert (found.device, found.dtype, found.threads) == (
        "cpu",
        "bfloat16",
        torch.get_num_threads(),
    )
    assert found.gpu is None
    assert found.cores >= 1
    assert datetime.fromisoformat(found.created).utcoffset() is not None
    assert found.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_the_commit_is_dirty_where_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1", encoding="utf-8")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert read_commit(tmp_path) == commit
    (tmp_path / "untracked").write_text("2", encoding="utf-8")
    assert read_commit(tmp_path) == commit
    (tmp_path / "a").write_text("2", encoding="utf-8")
    assert read_commit(tmp_path) == f"{commit}-dirty"


def test_no_checkout_and_no_git_have_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert read_commit() is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu family\t: 25\nmodel name\t: EPYC\n\nmodel name\t: EPYC", "EPYC (cpu family 25)"),
        ("model name : Cortex", "Cortex"),
    ],
)
def test_the_processor(
    text: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    assert cpu_name() == name
