"""The method against a simulated machine of known cost, with drift, outliers and noise.

No test here waits: the machine's clock is a number that its calls advance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from clipdepth_plugin.latency.intervals import (
    MIN_ROUNDS,
    Comparison,
    Values,
    compare,
    median_interval,
)
from clipdepth_plugin.latency.rounds import Samples, Timer, Variant, run_rounds, wall_timer

HOST, HEAD = 0.100, 0.006
SEEDS, ROUNDS = 200, 20
# What chance allows over so many seeds, at three deviations; a rate near 1 would be no interval.
LOWEST, HIGHEST = 0.95 - 3 * math.sqrt(0.95 * 0.05 / SEEDS), 0.997

Slowdown = Callable[[float], float]


@dataclass
class Machine:
    """A clock that moves by what a call costs, slowed down as ``slowdown`` says, and noise."""

    seed: int
    slowdown: Slowdown = lambda _: 1.0
    noise: float = 0.02
    outliers: float = 0.0
    now: float = 0.0
    draws: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draws = np.random.default_rng(self.seed)

    @property
    def timer(self) -> Timer:
        return wall_timer(now=lambda: self.now)

    def call(self, cost: float) -> Callable[[], None]:
        def run() -> None:
            factor = self.slowdown(self.now) * (1 + self.noise * self.draws.standard_normal())
            late = 0.2 * self.draws.exponential() if self.draws.random() < self.outliers else 0.0
            self.now += cost * factor + late

        return run

    def samples(self, head: float, rounds: int = ROUNDS) -> Samples:
        variants = [
            Variant("host", self.call(HOST)),
            Variant("again", self.call(HOST)),
            Variant("head", self.call(HOST + head)),
        ]
        return run_rounds(variants, rounds, self.timer, seed=self.seed)

    def comparison(self, head: float, rounds: int = ROUNDS) -> Comparison:
        times = self.samples(head, rounds)
        return compare(times["head"], times["host"], times["again"])


RUN = 12.0  # seconds that a run takes about
SCENARIOS: dict[str, Callable[[int], Machine]] = {
    "steady": Machine,
    "warms up by half": lambda seed: Machine(seed, lambda now: 1 + 0.5 * now / RUN),
    "throttled half way": lambda seed: Machine(seed, lambda now: 1.0 if now < RUN / 2 else 1.4),
    "slow waves": lambda seed: Machine(seed, lambda now: 1 + 0.2 * math.sin(now / 2)),
    "one call in ten is late": lambda seed: Machine(seed, outliers=0.1),
    "late calls and drift": lambda seed: Machine(seed, lambda now: 1 + now / RUN, outliers=0.1),
}


def coverage(truth: float, found: Callable[[int], Values]) -> float:
    """How often the interval of the paired values covers the truth."""
    covered = [median_interval(found(seed), seed=seed).contains(truth) for seed in range(SEEDS)]
    return float(np.mean(covered))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_ratios_interval_covers_the_truth_at_95_percent(name: str) -> None:
    def ratios(seed: int) -> Values:
        times = SCENARIOS[name](seed).samples(HEAD)
        return times["head"] / times["host"]

    assert LOWEST <= coverage((HOST + HEAD) / HOST, ratios) <= HIGHEST


@pytest.mark.parametrize(
    ("outliers", "rounds"), [(0.0, ROUNDS), (0.1, ROUNDS), (0.1, MIN_ROUNDS), (0.1, 30)]
)
def test_the_differences_interval_covers_the_truth_at_95_percent(
    outliers: float, rounds: int
) -> None:
    def differences(seed: int) -> Values:
        times = Machine(seed, outliers=outliers).samples(HEAD, rounds)
        return times["head"] - times["host"]

    assert LOWEST <= coverage(HEAD, differences) <= HIGHEST


def test_without_interleaving_a_drifting_machine_biases_the_result() -> None:
    """Shows that the coverage tests above can fail."""
    covered = []
    for seed in range(50):
        machine = Machine(seed, lambda now: 1 + 0.5 * now / RUN)
        timer = machine.timer
        host = run_rounds([Variant("host", machine.call(HOST))], ROUNDS, timer)["host"]
        head = run_rounds([Variant("head", machine.call(HOST + HEAD))], ROUNDS, timer)["head"]
        covered.append(median_interval(head / host).contains((HOST + HEAD) / HOST))
    assert np.mean(covered) < 0.5


def test_an_effect_above_the_noise_is_significant_and_narrow() -> None:
    for seed in range(50):
        found = Machine(seed, noise=0.01).comparison(HEAD, 30)
        assert found.significant
        assert found.difference.high - found.difference.low < HEAD


@pytest.mark.parametrize("head", [0.0, 0.0002], ids=["nothing", "a tenth of the noise"])
def test_an_effect_within_the_noise_is_not_significant(head: float) -> None:
    found = [Machine(seed).comparison(head).significant for seed in range(SEEDS)]
    assert np.mean(found) <= 1 - LOWEST


def test_an_effect_of_the_size_of_the_controls_bias_is_not_significant() -> None:
    draws = np.random.default_rng(0)
    host = HOST * (1 + 0.001 * draws.standard_normal(ROUNDS))
    assert compare(host + 0.002, host, control=host + 0.0005).significant
    assert not compare(host + 0.002, host, control=host - 0.003).significant
    assert compare(host + 0.002, host).significant  # without a control
