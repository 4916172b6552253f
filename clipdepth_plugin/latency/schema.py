"""The report of an audit, as JSON: ``clipdepth-bench/2``.

Every figure names its scope and comes with its interval. All figures of one report come from one
interleaved run, and only those may be compared.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.latency.intervals import Interval

Scope = Literal["tower", "prefill", "whole", "exported", "head", "separate"]
"""``tower``, ``prefill``, ``whole``: a pass of the host's tower, of a multimodal model over prompt
and picture, of the host's own forward. ``exported``: of the exported tower, in onnxruntime.
``head``: the depth head on tokens that exist already. ``separate``: another network on the same
picture."""

What = Literal["alone", "control", "hooks", "depth"]
"""``alone``: without depth. ``control``: the same once more. ``hooks``: tapped, depth not read.
``depth``: tapped, and the depth read after each pass."""


class Strict(BaseModel):
    """Frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Added(Strict):
    """What a variant adds to a baseline, from differences paired round by round.

    For a head alone and a separate network: their whole time, and its share of the baseline.
    """

    baseline: Scope
    milliseconds: Interval
    percent: Interval
    """Of the baseline's time."""
    significant: bool
    """Whether it exceeds the noise floor: the interval excludes zero and half its width is below
    the median, which exceeds every value in the interval of the baseline's difference from itself
    (its control). If not, only the interval's upper end means something."""
    memory_mib: float | None
    """Peak of a call above the baseline's peak, without the head's own parameters and without what
    a CUDA graph keeps; null where it can't be read."""


class Figure(Strict):
    """One variant of the run."""

    name: str
    scope: Scope
    what: What
    head: str | None = None
    """A name in ``Audit.heads``."""
    form: str | None = None
    """eager, fused, compiled, graph or onnx."""
    p50_ms: float
    p95_ms: float
    peak_mib: float | None
    """Memory that one call needs at its peak, the median of repetitions; null where it can't be
    read."""
    gflops: float | None
    """1e9 operations, a multiply-add being two; null where they were not counted."""
    added: tuple[Added, ...] = ()
    """Against each baseline."""
    seconds: tuple[float, ...]
    """One for each round, in the order of the rounds."""


class HeadSummary(Strict):
    """One of the heads measured."""

    preset: str
    levels: tuple[int, ...]
    parameters: int


class HostSummary(Strict):
    """The host measured."""

    label: str
    model: str
    """Its class."""
    parameters: int
    tower_parameters: int
    prompt_tokens: int | None
    """Of a prefill, the picture's included."""


class Settings(Strict):
    """How it was measured."""

    batch: int
    """Views in a pass of the tower."""
    size: tuple[int, int]
    """(H, W) of the first of them, in pixels of the tower's input."""
    rounds: int
    warmup: int
    seed: int


class Audit(Strict):
    """One audit of one host."""

    format: Literal["clipdepth-bench/2"] = "clipdepth-bench/2"
    environment: Environment
    host: HostSummary
    settings: Settings
    heads: dict[str, HeadSummary]
    noise_percent: dict[str, Interval]
    """Baseline -> how much it differs from itself, timed twice in each round."""
    figures: tuple[Figure, ...]
    verdict: tuple[str, ...] = ()
    """The result in sentences."""

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        return {figure.name: figure for figure in self.figures}[name]

    def memory_noise_mib(self, baseline: str) -> float | None:
        """MiB by which a baseline's peak memory differs from itself; None where it is unknown."""
        peaks = {figure.name: figure.peak_mib for figure in self.figures}
        alone, again = peaks.get(f"{baseline} alone"), peaks.get(f"{baseline} again")
        return None if alone is None or again is None else abs(again - alone)
