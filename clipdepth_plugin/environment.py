"""Under which environment a figure was measured: machine, clocks, versions, date, commit."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

PACKAGES = (
    "clipdepth-plugin",
    "torch",
    "triton",
    "numpy",
    "transformers",
    "open_clip_torch",
    "timm",
)


class Environment(BaseModel):
    """What has to be known of a measurement of time, beside what was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    created: str
    """ISO date and time, UTC."""
    command: tuple[str, ...]
    """The command line."""
    commit: str | None
    """Of the checkout that was run, with ``-dirty`` where tracked files differ; null where the
    package does not run from one."""
    platform: str
    """Operating system and architecture."""
    cpu: str
    """The processor's name, as the system gives it."""
    cores: int
    """Processors that this process may use."""
    cpu_mhz: float | None
    """Mean clock over the processors at the start, where it can be read."""
    load: float | None
    """Processes that wanted to run in the minute before, on average: on an idle machine near 0."""
    device: str
    """Where it was computed: cpu, cuda:0."""
    gpu: str | None
    """The GPU's name; null on the CPU."""
    gpu_mhz: dict[str, float] | None
    """``sm``, ``memory`` and ``max_sm`` clocks at the start, where nvidia-smi tells them."""
    cuda: str | None
    """CUDA's version; null on the CPU."""
    dtype: str
    """Of weights and inputs, or several joined by a comma."""
    threads: int
    """That torch computes with on the CPU."""
    versions: dict[str, str]
    """Of Python and of the packages that the figures depend on."""


def describe_circumstances(
    command: Sequence[str], device: torch.device | str = "cpu", dtype: str = "float32"
) -> Environment:
    """Reads what there is to read; what can't be read is None.

    Args:
        command: The command line.
        device: Where it is computed.
        dtype: What it is computed in.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command),
        commit=read_commit(),
        platform=platform_name(),
        cpu=cpu_name(),
        cores=_usable_cores(),
        cpu_mhz=_cpu_mhz(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        device=str(device),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        gpu_mhz=_gpu_mhz(device) if on_gpu else None,
        cuda=torch.version.cuda if on_gpu else None,
        dtype=dtype,
        threads=torch.get_num_threads(),
        versions=package_versions(),
    )


def platform_name() -> str:
    """Operating system and architecture."""
    return f"{platform.platform()} {platform.machine()}"


def package_versions() -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """The processor's name; with family and model where the name alone says little."""
    fields = _cpu_fields()
    name = next(iter(fields.get("model name", [])), platform.processor() or platform.machine())
    numbers = [f"{key} {fields[key][0]}" for key in ("cpu family", "model") if fields.get(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def machine_slug() -> str:
    """A machine's name for file names: its GPU's, else its processor's, and how many of them."""
    if torch.cuda.is_available():
        name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
    else:
        name, count = cpu_name().partition(" (")[0], _usable_cores()
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-x{count}"


def read_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that ``folder`` lies in; None where it is none of git's."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_fields() -> dict[str, list[str]]:
    """Fields of /proc/cpuinfo, one value for each processor; empty where there is no such file."""
    fields: dict[str, list[str]] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return fields
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), []).append(value.strip())
    return fields


def _cpu_mhz() -> float | None:
    clocks = [float(mhz) for mhz in _cpu_fields().get("cpu MHz", [])]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _gpu_mhz(device: torch.device) -> dict[str, float] | None:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    said = _output(
        "nvidia-smi",
        "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm",
        "--format=csv,noheader,nounits",
        *([f"--id=GPU-{uuid}"] if uuid is not None else []),
    )
    try:
        clocks = [float(mhz) for mhz in (said or "").splitlines()[0].split(",")]
    except (IndexError, ValueError):  # "[N/A]" on some cards
        return None
    return dict(zip(("sm", "memory", "max_sm"), clocks, strict=True))


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints; None where it is not there or fails."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 (fixed programs, found on the path)
            [path, *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
