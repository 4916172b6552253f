"""The environment of a measurement: machine, clocks, versions, date, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

PACKAGES = (
    "clipdepth-plugin", "torch", "triton", "numpy", "transformers", "open_clip_torch", "timm",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")


class Environment(BaseModel):
    """The environment of a measurement; what can't be read is null."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    created: str
    """ISO date and time, UTC."""
    command: tuple[str, ...]
    """The command line."""
    commit: str | None
    """Of the checkout, with ``-dirty`` where tracked files differ; null outside a checkout."""
    platform: str
    """Operating system and architecture."""
    cpu: str
    """The processor's name, as the system gives it."""
    cores: int
    """Processors that this process may use."""
    load: float | None
    """Mean number of runnable processes in the minute before: near 0 on an idle machine."""
    device: str
    """Where it was computed: cpu, cuda:0."""
    gpu: str | None
    """The GPU's name; null on the CPU."""
    dtype: str
    """Of weights and inputs, or several joined by a comma."""
    threads: int
    """Of torch on the CPU."""
    versions: dict[str, str]
    """Of Python, of CUDA on a GPU, and of the packages that the figures depend on."""


def describe_environment(
    command: Sequence[str], device: torch.device | str = "cpu", dtype: str = "float32"
) -> Environment:
    """Reads the environment of what ``command`` computes on ``device`` in ``dtype``."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    cuda = {"cuda": str(torch.version.cuda)} if on_gpu else {}
    on_linux = hasattr(os, "sched_getaffinity")
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command),
        commit=read_commit(),
        platform=platform_name(),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        device=str(device),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        dtype=dtype,
        threads=torch.get_num_threads(),
        versions=package_versions() | cuda,
    )


def platform_name() -> str:
    """Operating system and architecture."""
    return f"{platform.platform()} {platform.machine()}"


def package_versions() -> dict[str, str]:
    """Of Python and of the installed ones among ``PACKAGES``."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """The processor's name, with its family and model, as one name covers several processors."""
    name = (_cpu_fields("model name") or [platform.processor() or platform.machine()])[0]
    numbers = [f"{key} {x}" for key in ("cpu family", "model") for x in _cpu_fields(key)[:1]]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def read_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that ``folder`` lies in; None outside a checkout."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _cpu_fields(key: str) -> list[str]:
    """A field of /proc/cpuinfo, one value for each processor; empty where it does not exist."""
    if not _CPUINFO.exists():
        return []
    pattern = rf"^{key}\s*: *(.+)$"
    return re.findall(pattern, _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(  # noqa: S603 (fixed programs, found on the path)
            [program, *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
