"""The report of an audit, as JSON: ``clipdepth-bench/1``.

Every figure says of what it is (``scope``) and comes with its interval; all figures of one file
come from one interleaved run, and only those may be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.errors import BenchError

Report = TypeVar("Report", bound=BaseModel)

Scope = Literal["tower", "prefill", "whole", "head", "separate"]
"""``tower``, ``prefill``, ``whole``: a pass of the host's tower, of a multimodal model over prompt
and picture, of the host's own forward. ``head``: the depth head on tokens that are there already.
``separate``: another network on the same picture."""

What = Literal["alone", "control", "hooks", "depth"]
"""``alone``: without us. ``control``: the same once more. ``hooks``: tapped, depth not read.
``depth``: tapped, and the depth read after each pass."""


class Strict(BaseModel):
    """Frozen, and without fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Range(Strict):
    """A median with its 95% bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Added(Strict):
    """What a variant adds to its base, from differences paired round by round."""

    base: Scope
    """What it is added to, or a share of."""
    milliseconds: Range
    percent: Range
    """Of the base's time."""
    told: bool
    """Whether it can be told from noise: the interval leaves zero out and its half is smaller than
    the median, which is larger than all that the base's difference from itself (its control)
    admits. If not, only the interval's upper end means something."""
    memory_mib: float | None
    """Peak of a call above the base's, without the head's own parameters, and without what a CUDA
    graph keeps for good (its inputs and activations), the median of repeated pairs; null where it
    can't be read. It means something where it is larger than ``Audit.memory_noise``."""


class Figure(Strict):
    """One variant of the run."""

    name: str
    scope: Scope
    """Of what it is the time."""
    what: What
    head: str | None = None
    """A name in ``Audit.heads``."""
    form: str | None = None
    """eager, fused, compiled or graph."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    """Of few rounds, near the maximum."""
    peak_mib: float | None
    """Memory that one call needs at its peak, the median of repetitions; null where it can't be
    read."""
    gflops: float | None
    """1e9 operations, a multiply-add being two; null where they were not counted."""
    added: tuple[Added, ...] = ()
    """Against each base: the difference for a host with hooks or depth; for a head alone and a
    separate network all of their time."""
    seconds: tuple[float, ...]
    """One for each round, in the order of the rounds."""


class HeadSummary(Strict):
    """One of the heads measured."""

    preset: str
    levels: tuple[int, ...]
    parameters: int
    parameters_mib: float


class HostSummary(Strict):
    """The host measured."""

    spec: str
    """As on the command line."""
    label: str
    model: str
    """Its class."""
    parameters: int
    tower: str
    """Module path; "" where the host is the tower."""
    tower_parameters: int
    family: str
    blocks: int
    width: int
    patch: tuple[int, int]
    random_weights: bool
    prompt_tokens: int | None
    """Of a prefill, the picture's included."""


class Settings(Strict):
    """How it was measured."""

    batch: int
    size: tuple[int, int]
    rounds: int
    warmup: int
    seed: int


class SweepPoint(Strict):
    """One value of a sweep."""

    value: int
    tower_ms: Range
    images_per_second: float
    """Through the tower alone."""
    added_ms: dict[str, Range]
    """Head -> what reading its depth adds to the tower."""
    added_told: dict[str, bool]
    """Head -> whether that can be told from noise."""
    images_per_second_with: dict[str, float]
    """Head -> through the tower with depth."""


class Exponent(Strict):
    """The slope of log time over log value; 1 is cost in proportion."""

    of: str
    """"tower", or the head whose added time it is."""
    exponent: Range


class Sweep(Strict):
    """How time grows with one quantity; all values in one interleaved run, of the tower."""

    over: Literal["batch", "pixels", "levels"]
    """``pixels``: of one side of a square picture, the exponent being taken over their square.
    ``levels``: how many levels of the tower are tapped."""
    rounds: int
    points: tuple[SweepPoint, ...]
    exponents: tuple[Exponent, ...]
    exponents_not_fitted: dict[str, str] = {}
    """Of what -> why."""
    others_percent: float | None = None
    """As ``Audit.others_percent``, during this sweep's rounds. Null in older files, too."""


class Audit(Strict):
    """One audit of one host."""

    format: Literal["clipdepth-bench/1"] = "clipdepth-bench/1"
    environment: Environment
    host: HostSummary
    settings: Settings
    heads: dict[str, HeadSummary]
    forms_not_measured: dict[str, str]
    """Form -> why."""
    noise_percent: dict[str, Range]
    """Base -> what it differs from itself, timed twice in each round."""
    memory_noise_mib: dict[str, float] = {}
    """Base -> the largest difference of its peak memory from itself, in repeated pairs. Not there
    where it can't be read, or in older files, which have one pair: see ``memory_noise``."""
    others_percent: float | None = None
    """% of the machine's processor time that others took during the rounds: other processes, and
    what the hypervisor gave to other machines. Null where it can't be read."""
    processors: int | None = None
    """Of the machine, of whose time that is a share. Null in older files: there
    ``environment.cores`` are taken for all."""
    figures: tuple[Figure, ...]
    sweeps: tuple[Sweep, ...] = ()
    verdict: tuple[str, ...] = ()
    """In plain words."""

    def figure(self, name: str) -> Figure:
        """The figure of that name.

        Raises:
            KeyError: There is none.
        """
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    @property
    def processors_seen(self) -> int:
        """Processors of whose time ``others_percent`` is a share."""
        return self.processors or self.environment.cores

    def memory_noise(self, base: str) -> float | None:
        """MiB by which a base's peak memory differs from itself; None where that isn't known."""
        if base in self.memory_noise_mib:
            return self.memory_noise_mib[base]
        peaks = {figure.name: figure.peak_mib for figure in self.figures}
        alone, again = peaks.get(f"{base} alone"), peaks.get(f"{base} again")
        return None if alone is None or again is None else abs(again - alone)


def load_audit(path: Path) -> Audit:
    """Reads an audit's JSON file.

    Raises:
        BenchError: It is not there, or not such a file.
    """
    return read_report(path, Audit, "clipdepth bench")


def read_report(path: Path, kind: type[Report], command: str) -> Report:
    """Reads the JSON file that a command wrote.

    Raises:
        BenchError: It is not there, or not such a file.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise BenchError(f"{path}: not a report of {command} ({error})") from error
