"""What is said of the machine is read, not made up; what can't be read is None."""

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
    describe_circumstances,
    machine_slug,
    read_commit,
)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_of_a_run_on_the_cpu() -> None:
    said = describe_circumstances(["clipdepth", "bench"], "cpu", "bfloat16")
    assert said.command == ("clipdepth", "bench")
    assert (said.device, said.dtype, said.threads) == ("cpu", "bfloat16", torch.get_num_threads())
    assert said.gpu is None
    assert said.gpu_mhz is None
    assert said.cores >= 1
    assert datetime.fromisoformat(said.created).utcoffset() is not None
    assert said.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert Environment.model_validate_json(said.model_dump_json()) == said


def test_the_commit_says_where_files_differ(tmp_path: Path) -> None:
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
    ("fields", "name"),
    [
        ({"model name": ["EPYC"], "cpu family": ["25"]}, "EPYC (cpu family 25)"),
        ({"model name": ["Cortex"]}, "Cortex"),
    ],
)
def test_the_processor(
    fields: dict[str, list[str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_cpu_fields", lambda: fields)
    assert cpu_name() == name


def test_the_machines_name_in_a_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "cpu_name", lambda: "Intel(R) Xeon(R) (cpu family 6)")
    monkeypatch.setattr(environment, "_usable_cores", lambda: 2)
    assert machine_slug() == "intel-r-xeon-r-x2"


@pytest.mark.parametrize(
    ("said", "clocks"),
    [
        ("1980, 2619, 1980", {"sm": 1980.0, "memory": 2619.0, "max_sm": 1980.0}),
        ("[N/A], [N/A], [N/A]", None),
        (None, None),
    ],
)
def test_gpu_clocks(
    said: str | None, clocks: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_output", lambda *_: said)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: object())
    assert environment._gpu_mhz(torch.device("cuda", 0)) == clocks
