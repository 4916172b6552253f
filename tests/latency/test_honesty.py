"""The method against a machine whose truth is known: drift, outliers and noise are put in.

No test here waits: the machine's clock is a number that its calls move on.
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
    median_ratio,
)
from clipdepth_plugin.latency.rounds import Samples, Variant, run_rounds
from clipdepth_plugin.latency.timers import WallTimer

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
    def timer(self) -> WallTimer:
        return WallTimer(now=lambda: self.now)

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
            Variant("other", self.call(3 * HOST)),
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
def test_the_ratios_interval_covers_the_truth_at_its_rate(name: str) -> None:
    def ratios(seed: int) -> Values:
        times = SCENARIOS[name](seed).samples(HEAD)
        return times["head"] / times["host"]

    assert LOWEST <= coverage((HOST + HEAD) / HOST, ratios) <= HIGHEST


@pytest.mark.parametrize(
    ("outliers", "rounds"), [(0.0, ROUNDS), (0.1, ROUNDS), (0.1, MIN_ROUNDS), (0.1, 30)]
)
def test_the_differences_interval_covers_the_truth_at_its_rate(
    outliers: float, rounds: int
) -> None:
    def differences(seed: int) -> Values:
        times = Machine(seed, outliers=outliers).samples(HEAD, rounds)
        return times["head"] - times["host"]

    assert LOWEST <= coverage(HEAD, differences) <= HIGHEST


@pytest.mark.parametrize("head", [HEAD, 0.001], ids=["told", "lost in noise"])
def test_a_ratio_to_a_difference_covers_the_truth_at_its_rate(head: float) -> None:
    """The second head's difference is negative in a third of the rounds."""
    covered, medians = [], []
    for seed in range(SEEDS):
        times = Machine(seed).samples(head)
        found = median_ratio(times["other"], times["head"] - times["host"], seed=seed)
        covered.append(found.contains(3 * HOST / head))
        medians.append(found.median)
    assert LOWEST <= np.mean(covered) <= HIGHEST
    assert np.median(medians) == pytest.approx(3 * HOST / head, rel=0.3)


def test_one_after_the_other_misses_the_truth_where_the_machine_drifts() -> None:
    """What rounds are for; it also shows that the tests above could fail."""
    covered = []
    for seed in range(50):
        machine = Machine(seed, lambda now: 1 + 0.5 * now / RUN)
        timer = machine.timer
        host = run_rounds([Variant("host", machine.call(HOST))], ROUNDS, timer)["host"]
        head = run_rounds([Variant("head", machine.call(HOST + HEAD))], ROUNDS, timer)["head"]
        covered.append(median_interval(head / host).contains((HOST + HEAD) / HOST))
    assert np.mean(covered) < 0.5


def test_an_effect_above_the_noise_is_told_and_narrow() -> None:
    for seed in range(50):
        found = Machine(seed, noise=0.01).comparison(HEAD, 30)
        assert found.told
        assert found.difference.high - found.difference.low < HEAD


@pytest.mark.parametrize("head", [0.0, 0.0002], ids=["nothing", "a tenth of the noise"])
def test_an_effect_within_the_noise_is_not_told(head: float) -> None:
    told = [Machine(seed).comparison(head).told for seed in range(SEEDS)]
    assert np.mean(told) <= 1 - LOWEST


def test_a_host_that_differs_from_itself_takes_the_word_back() -> None:
    """Where the control shows a bias, an effect of its size is noise, however narrow."""
    draws = np.random.default_rng(0)
    host = HOST * (1 + 0.001 * draws.standard_normal(ROUNDS))
    assert compare(host + 0.002, host, control=host + 0.0005).told
    assert not compare(host + 0.002, host, control=host - 0.003).told
    assert compare(host + 0.002, host).told  # the bias is not seen without a control
