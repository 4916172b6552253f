"""Rounds and their order, and the errors of intervals."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.intervals import (
    MIN_ROUNDS,
    Interval,
    compare,
    median_interval,
)
from clipdepth_plugin.latency.rounds import Variant, orders, run_rounds, wall_timer


def test_every_variant_runs_once_a_round_and_between_its_before_and_after() -> None:
    seen: list[str] = []

    def say(what: str) -> Callable[[], None]:
        return lambda: seen.append(what)

    variants = [Variant(x, say(x), say(f"before {x}"), say(f"after {x}")) for x in "ab"]
    done: list[int] = []
    times = run_rounds(variants, 3, wall_timer(), warmup=1, advance=lambda: done.append(1))
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert len(done) == 3
    calls = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert len(calls) == 2 * (1 + 3)
    assert all(call == [f"before {call[1]}", call[1], f"after {call[1]}"] for call in calls)


def test_the_order_is_random_then_backwards() -> None:
    found = orders(6, 7)
    assert all(sorted(order) == list(range(6)) for order in found)
    for forward, backward in zip(found[0:6:2], found[1:6:2], strict=True):
        assert backward == forward[::-1]
    assert len({tuple(order) for order in found}) > 3
    assert orders(6, 7) == found
    assert orders(6, 7, seed=1) != found


def test_after_runs_also_after_an_error() -> None:
    undone: list[int] = []

    def fail() -> None:
        raise RuntimeError("in the call")

    variant = Variant("a", fail, after=lambda: undone.append(1))
    with pytest.raises(RuntimeError, match="in the call"):
        run_rounds([variant], 1, wall_timer())
    assert undone == [1]


def test_garbage_is_not_collected_while_the_clock_runs() -> None:
    seen: list[bool] = []
    run_rounds([Variant("a", lambda: seen.append(gc.isenabled()))], 2, wall_timer(), warmup=0)
    assert seen == [False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("names", "rounds"), [(["a", "a"], 1), (["a"], 0)], ids=["one name twice", "no round"]
)
def test_wrong_rounds_and_names_are_refused(names: list[str], rounds: int) -> None:
    variants = [Variant(name, lambda: None) for name in names]
    with pytest.raises(BenchError, match="needs a round and names that differ"):
        run_rounds(variants, rounds, wall_timer())


def test_too_few_rounds_give_no_interval() -> None:
    with pytest.raises(BenchError, match=f"needs {MIN_ROUNDS} or more"):
        median_interval(np.ones(MIN_ROUNDS - 1))


def test_a_time_that_is_not_finite_gives_no_interval() -> None:
    with pytest.raises(BenchError, match="not finite"):
        median_interval(np.array([np.nan, *np.ones(MIN_ROUNDS)]))


def test_an_interval_is_shifted_then_scaled() -> None:
    assert Interval(1.5, 1.25, 2.0).scaled(100.0, shift=-1.0) == Interval(50.0, 25.0, 100.0)


def test_a_real_sleep_is_found_on_the_real_clock() -> None:
    """With a generous upper bound, as the machine may be busy."""
    variants = [
        Variant("host", lambda: time.sleep(0.004)),
        Variant("head", lambda: time.sleep(0.012)),
    ]
    times = run_rounds(variants, 12, wall_timer(), warmup=0)
    found = compare(times["head"], times["host"])
    assert found.significant
    assert 0.004 < found.difference.median < 0.1
